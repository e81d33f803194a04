"""Files made to harm, given to the commands a user types, each in a fresh process: nothing of them is ever run."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from safetensors.torch import load_file, save_file
from torch import Tensor

from nnunet_ssl.integration.architecture import build_network

pytestmark = pytest.mark.slow

PLANS = "nnUNetSSLResEncTinyPlans"


class Bomb:
    """Writes a file when unpickled by a loader that runs what it reads."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.witness)!r}, 'w').close()",)


def both_at_once(path: Path, checkpoint: Mapping[str, Any], witness: Path) -> None:
    """A file that a reader of safetensors takes for one of ours with `checkpoint` in it, and that a pickle reader runs.

    The length of the header is, to a pickle, a text that ends within the first tensor's name; a V in there makes a line of
    text of the rest of the header; then comes what runs.
    """
    weights: Mapping[str, Tensor] = checkpoint["network_weights"]
    rest = {key: value for key, value in checkpoint.items() if key != "network_weights"}
    metadata = {"nnunet_ssl": "1", "names": json.dumps(list(weights)), "aliases": "{}", "config": json.dumps(rest)}
    save_file({name: tensor.clone() for name, tensor in weights.items()}, path, metadata)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    program = b"\n0cbuiltins\nexec\n(V" + f"open({str(witness)!r}, 'w').close()".encode() + b"\ntR."
    program += b"\n" * (-len(program) % 8)
    skipped = 5 + (2 << 8)
    moved = {"V" * skipped: {"dtype": "U8", "shape": [len(program)], "data_offsets": [0, len(program)]}}
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [offset + len(program) for offset in entry["data_offsets"]]
        moved[name] = entry
    text = json.dumps(moved, separators=(",", ":")).encode()
    text = text.ljust(ord("X") + (skipped << 8))
    assert struct.pack("<Q", len(text)) == b"X" + struct.pack("<I", skipped) + b"\0\0\0"
    path.write_bytes(struct.pack("<Q", len(text)) + text + program + content[8 + length :])


@dataclass(frozen=True)
class Place:
    """A data set that was planned and preprocessed, and the network of its plans."""

    folders: dict[str, str]
    plans: dict[str, Any]

    @property
    def results(self) -> Path:
        return Path(self.folders["nnUNet_results"]) / "Dataset930_Tiny"

    def model(self, trainer: str) -> Path:
        """A model folder as nnU-Net makes it, without checkpoints."""
        folder = self.results / f"{trainer}__{PLANS}__3d_fullres"
        (folder / "fold_0").mkdir(parents=True)
        base = Path(self.folders["nnUNet_preprocessed"]) / "Dataset930_Tiny"
        shutil.copy(base / "dataset.json", folder)
        (folder / "plans.json").write_text(json.dumps(self.plans))
        return folder

    def checkpoint(self, trainer: str) -> dict[str, Any]:
        """What nnU-Net's trainers save, as far as JSON can hold it."""
        manager = PlansManager(json.loads(json.dumps(self.plans)))
        network = build_network(manager.get_configuration("3d_fullres"), 1, 2, True)
        group = {"lr": 0.1, "initial_lr": 0.1, "params": list(range(len(list(network.parameters()))))}
        return {
            "network_weights": network.state_dict(),
            "ssl": {"method": "mae", "backbone": "unet", "patch_size": [16, 16, 16], "num_input_channels": 1},
            "trainer_name": trainer,
            "current_epoch": 1,
            "optimizer_state": {"param_groups": [group], "state": {}},
            "init_args": {"configuration": "3d_fullres", "fold": 0},
            "inference_allowed_mirroring_axes": [0, 1, 2],
            "logging": {},
            "_best_ema": 0.5,
            "grad_scaler_state": None,
        }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, run_command, tiny_dataset) -> Place:
    """Planned and preprocessed once; tests copy it."""
    folder = tmp_path_factory.mktemp("prepared")
    folders = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for path in folders.values():
        Path(path).mkdir()
    tiny_dataset(folders["nnUNet_raw"], 930, num_cases=5)
    options = ["-d", "930", "-pl", "SSLPlannerResEncTiny", "-c", "3d_fullres", "-npfp", "1", "-np", "1"]
    run_command(["nnUNetv2_plan_and_preprocess", *options], folders)
    file = Path(folders["nnUNet_preprocessed"]) / "Dataset930_Tiny" / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    short = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    plans["configurations"]["3d_fullres"]["finetune"] = short
    file.write_text(json.dumps(plans))
    return Place(folders, plans)


@pytest.fixture
def place(prepared: Place, tmp_path: Path) -> Place:
    """The prepared data set with results and plans of its own."""
    folders = {name: str(tmp_path / Path(path).name) for name, path in prepared.folders.items()}
    for name, path in prepared.folders.items():
        shutil.copytree(path, folders[name])
    more = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    return Place({**folders, **more}, json.loads(json.dumps(prepared.plans)))


def images(place: Place, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(Path(place.folders["nnUNet_raw"]) / "Dataset930_Tiny" / "imagesTr" / "tiny_00_0000.nii.gz", folder)
    return folder


def train(trainer: str, *more: str | Path) -> list[str | Path]:
    return ["nnUNetv2_train", "930", "3d_fullres", "0", "-tr", trainer, "-p", PLANS, "-device", "cpu", *more]


def predict(place: Place, tmp_path: Path, trainer: str) -> list[str | Path]:
    where = ["-d", "930", "-c", "3d_fullres", "-f", "0", "-tr", trainer, "-p", PLANS, "-device", "cpu", "--disable_tta"]
    options = [*where, "-npp", "1", "-nps", "1"]
    return ["nnUNetv2_predict", "-i", images(place, tmp_path), "-o", tmp_path / "out", *options]


# ---- safetensors and pickle at once ----------------------------------------------------------------------------------------


def test_the_file_used_here_runs_where_it_is_taken_for_a_pickle(tmp_path: Path) -> None:
    """Otherwise nothing of it would be run for being badly made."""
    both_at_once(tmp_path / "a.pth", {"network_weights": {"a": torch.zeros(3)}}, tmp_path / "exploded")
    assert set(load_file(tmp_path / "a.pth")) >= {"a"}
    with (tmp_path / "a.pth").open("rb") as file:
        pickle.load(file)
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "SSLFinetuneTrainer"])
def test_pretrained_weights_that_are_two_things_at_once(trainer, place, run_command, tmp_path):
    both_at_once(tmp_path / "weights.pth", place.checkpoint("nnUNetTrainer"), tmp_path / "exploded")
    result = run_command(
        train(trainer, "-pretrained_weights", tmp_path / "weights.pth"), place.folders, check=False, timeout=120
    )
    assert not (tmp_path / "exploded").exists()
    assert "is a safetensors file and a pickle at once" in result.stderr
    assert result.returncode != 0


def test_pretrained_weights_from_the_hub_that_are_two_things_at_once(place, run_command, tmp_path, hub_server):
    both_at_once(tmp_path / "weights.pth", place.checkpoint("nnUNetTrainer"), tmp_path / "exploded")
    hub_server.add("ORG/NAME", {"checkpoint_final.pth": (tmp_path / "weights.pth").read_bytes()})
    hub = {"HF_ENDPOINT": hub_server.endpoint, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    command = train("nnUNetTrainer", "-pretrained_weights", "ORG/NAME")
    result = run_command(command, {**place.folders, **hub}, check=False, timeout=120)
    assert not (tmp_path / "exploded").exists()
    assert "is a safetensors file and a pickle at once" in result.stderr


@pytest.mark.parametrize(("flag", "name"), [("--c", "checkpoint_latest.pth"), ("--val", "checkpoint_final.pth")])
@pytest.mark.parametrize("trainer", ["SSLFinetuneTrainer", "SSLMAETrainer"])
def test_resuming_and_validating_what_is_two_things_at_once(flag, name, trainer, place, run_command, tmp_path):
    folder = place.model(trainer)
    both_at_once(folder / "fold_0" / name, place.checkpoint(trainer), tmp_path / "exploded")
    result = run_command(train(trainer, flag), place.folders, check=False, timeout=120)
    assert not (tmp_path / "exploded").exists()
    assert "is a safetensors file and a pickle at once" in result.stderr


def test_predicting_with_what_is_two_things_at_once(place, run_command, tmp_path):
    folder = place.model("SSLFinetuneTrainer")
    both_at_once(folder / "fold_0/checkpoint_final.pth", place.checkpoint("SSLFinetuneTrainer"), tmp_path / "exploded")
    result = run_command(predict(place, tmp_path, "SSLFinetuneTrainer"), place.folders, check=False)
    assert not (tmp_path / "exploded").exists()
    assert "is a safetensors file and a pickle at once" in result.stderr


# ---- what nnU-Net itself opens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", ["SSLFinetuneTrainer", "SSLScratchTrainer"])
def test_our_trainers_predict_from_data_alone(trainer, place, run_command, tmp_path):
    checkpoint = place.checkpoint(trainer)
    file = place.model(trainer) / "fold_0" / "checkpoint_final.pth"
    torch.save({**checkpoint, "bomb": Bomb(tmp_path / "exploded")}, file)
    command = predict(place, tmp_path, trainer)
    result = run_command(command, place.folders, check=False)
    assert not (tmp_path / "exploded").exists()
    assert "nothing of it was run" in result.stderr
    torch.save(checkpoint, file)
    result = run_command(command, place.folders)
    assert (tmp_path / "out" / "tiny_00.nii.gz").is_file()
    assert "WARNING" not in result.stderr


def test_nnunets_own_trainers_warn_once_and_refuse_where_asked(place, run_command, tmp_path):
    model = place.model("nnUNetTrainer")
    (model / "fold_1").mkdir()
    checkpoint = place.checkpoint("nnUNetTrainer")
    for fold in (0, 1):
        torch.save({**checkpoint, "more": Bomb(tmp_path / "exploded")}, model / f"fold_{fold}" / "checkpoint_final.pth")
    command = [part if part != "0" else "0 1" for part in predict(place, tmp_path, "nnUNetTrainer")]
    at = command.index("0 1")
    command[at : at + 1] = ["0", "1"]
    refused = run_command(command, {**place.folders, "NNUNET_SSL_REFUSE_UNSAFE": "1"}, check=False)
    assert refused.returncode != 0
    assert "nothing of it was run" in refused.stderr
    assert not (tmp_path / "exploded").exists()
    allowed = run_command(command, place.folders)
    assert allowed.stderr.count("WARNING: nnU-Net unpickles") == 1
    assert str(model / "fold_0" / "checkpoint_final.pth") in allowed.stderr
    assert "NNUNET_SSL_REFUSE_UNSAFE=1" in allowed.stderr
    assert (tmp_path / "exploded").exists()  # nnU-Net's own behaviour, which is not ours to change
    assert (tmp_path / "out" / "tiny_00.nii.gz").is_file()
    (tmp_path / "exploded").unlink()
    for fold in (0, 1):
        torch.save(checkpoint, model / f"fold_{fold}" / "checkpoint_final.pth")
    quiet = run_command(command, {**place.folders, "NNUNET_SSL_REFUSE_UNSAFE": "1"})
    assert "WARNING" not in quiet.stderr
