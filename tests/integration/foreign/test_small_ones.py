"""Weights that would become infinite, texts that act on a terminal, HTML, and our own safetensors: the real commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

pytestmark = pytest.mark.slow

RED = "\x1b[31mred\x1b[0m\x07"
HTML = "<script>alert(1)</script>"
LOAD = """
import sys
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunet_ssl.integration.architecture import build_network
plans = PlansManager(sys.argv[1])
network = build_network(plans.get_configuration("3d_fullres"), 1, 2, True)
load_pretrained_weights(network, sys.argv[2])
torch.save(network.state_dict(), sys.argv[3])
"""


def loud(place, **further) -> dict:
    """A checkpoint whose texts are for terminals and browsers."""
    checkpoint = place.checkpoint(f"Trainer{RED}")
    checkpoint["ssl"] |= {"dataset": f"data{RED}", "versions": {f"v{RED}": HTML}, "citations": [f"{HTML}{RED}"]}
    checkpoint["init_args"]["plans"] = place.plans
    return checkpoint | further


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "SSLFinetuneTrainer"])
def test_float64_beyond_float32(trainer, place, run_command, tmp_path):
    checkpoint = {key: value for key, value in place.checkpoint("nnUNetTrainer").items() if key != "ssl"}
    weights = {name: value.double() for name, value in checkpoint["network_weights"].items()}
    for value in weights.values():  # whichever of a weight's names is believed
        value.view(-1)[0] = 1e300
    torch.save({**checkpoint, "network_weights": weights}, tmp_path / "weights.pth")
    command = place.train(trainer, "-pretrained_weights", tmp_path / "weights.pth")
    result = run_command(command, place.folders, check=False, timeout=120)
    assert "beyond the range of torch.float32" in result.stderr
    told = run_command(["nnUNetv2_pretrain_info", tmp_path / "weights.pth"]).stdout
    assert "hold NaN or infinite values" in told


def test_info_acts_on_no_terminal(place, run_command, tmp_path):
    torch.save(loud(place), tmp_path / "weights.pth")
    told = run_command(["nnUNetv2_pretrain_info", tmp_path / "weights.pth"])
    assert "\x1b" not in told.stdout + told.stderr
    assert r"data\x1b[31mred\x1b[0m\x07" in told.stdout
    weights = {f"encoder.{RED}": torch.zeros(3)}
    torch.save({"network_weights": weights, RED: {RED: torch.zeros(1).to_sparse()}}, tmp_path / "bad.pth")
    refused = run_command(["nnUNetv2_pretrain_info", tmp_path / "bad.pth"], check=False)
    assert refused.returncode == 1
    assert "\x1b" not in refused.stdout + refused.stderr


def test_corpus_acts_on_no_terminal(nnunet_folders, run_command, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(folder / "good.nii.gz"))
    (folder / f"bad{RED}.nii.gz").write_bytes(b"nothing")
    table = folder / "images.csv"
    rows = ["image_path,modality,subject", f'good.nii.gz,"MR{RED}{HTML}",s1', f"bad{RED}.nii.gz,CT,s2"]
    table.write_text("\n".join(rows) + "\n")
    import_it = ["nnUNetv2_pretrain_import", "-i", table, "-d", "931", "-n", "Loud", "-np", "1"]
    made = run_command(import_it, nnunet_folders)
    assert "\x1b" not in made.stdout + made.stderr
    page = tmp_path / "page.html"
    told = run_command(["nnUNetv2_pretrain_corpus", "-d", "931", "-np", "1", "--html", page], nnunet_folders)
    assert "\x1b" not in told.stdout
    assert r"\x1b[31mred" in told.stdout
    assert HTML not in page.read_text()
    assert "&lt;script&gt;" in page.read_text()


def test_model_cards_hold_no_html_of_files(place, run_command, tmp_path):
    torch.save(loud(place), tmp_path / "weights.pth")
    made = run_command(
        ["nnUNetv2_pretrain_export", tmp_path / "weights.pth", "-o", tmp_path / "out", "--format", "safetensors"]
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert HTML not in card
    assert "&lt;script&gt;" in card
    assert "\x1b" not in card + made.stdout


def test_our_safetensors_start_a_stock_trainer(place, run_command, tmp_path):
    checkpoint = place.checkpoint("SSLMAETrainer")
    checkpoint["init_args"]["plans"] = place.plans
    torch.save(checkpoint, tmp_path / "weights.pth")
    out = tmp_path / "out"
    run_command(["nnUNetv2_pretrain_export", tmp_path / "weights.pth", "-o", out, "--format", "safetensors"])
    loaded = tmp_path / "loaded.pth"
    run_command(["python", "-c", LOAD, place.plans_file, out / "model.safetensors", loaded], place.folders)
    ours, theirs = checkpoint["network_weights"], torch.load(loaded, weights_only=True)
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items() if ".seg_layers." not in name)
    assert Path(out / "config.json").is_file()
    assert json.loads((out / "config.json").read_text())["trainer_name"] == "SSLMAETrainer"
