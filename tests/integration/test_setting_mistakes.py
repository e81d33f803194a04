"""Settings through the real commands, in fresh processes: what is converted (mistakes: docs/mistakes.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TINY = ["906", "--backbone", "resenc_tiny", "-np", "1", "-device", "cpu"]


@pytest.mark.slow
def test_words_and_single_numbers_mean_what_they_say(nnunet_folders, run_command, tiny_dataset):
    tiny_dataset(nnunet_folders["nnUNet_raw"], 906, num_cases=3, num_labelled=0)
    values = {
        "mae.normalise_target": "False",
        "mae.mask_ratio": ".5",
        "mae.augmentation": "1",
        "simclr.crop_size": "16",
        "simclr.temperature": '"0.1"',
        "recompute": "no",
    }
    settings = [text for key, value in values.items() for text in ("--set", f"{key}={value}")]
    short = ["--epochs", "1", "--iterations-per-epoch", "1", "--val-iterations-per-epoch", "1"]
    done = run_command(["nnUNetv2_pretrain", *TINY, *short, *settings], {**nnunet_folders, "nnUNet_n_proc_DA": "0"})
    assert "normalise_target=False" in done.stdout
    assert "mask_ratio=0.5" in done.stdout
    (plans,) = Path(nnunet_folders["nnUNet_results"]).glob("Dataset906_Tiny/SSLMAETrainer__*/plans.json")
    block = json.loads(plans.read_text())["configurations"]["3d_fullres"]["ssl"]
    assert block["mae"] == {"normalise_target": False, "mask_ratio": 0.5, "augmentation": 1.0}
    assert block["simclr"] == {"crop_size": [16, 16, 16], "temperature": 0.1}
    assert block["recompute"] is False
