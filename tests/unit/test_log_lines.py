"""The words of a run's log: a line per epoch with the time that is left, early ends, and what to type next."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest

from nnunet_ssl.messages import counted
from nnunet_ssl.trainers.loop import next_commands as module
from nnunet_ssl.trainers.loop.early_stop import stalled
from nnunet_ssl.trainers.loop.log_lines import epoch_line
from nnunet_ssl.trainers.loop.next_commands import next_commands

LOG = {
    "epoch_start_timestamps": 100.0,
    "epoch_end_timestamps": 130.0,
    "train_losses": 0.5,
    "val_losses": 0.25,
    "val_yardstick": 1.0,
    "train_spread": 0.1,
    "val_spread": 0.2,
    "val_rank": 3.0,
    "lrs": 0.001,
}


def test_an_epoch_is_one_line_counted_from_one():
    line = epoch_line(LOG, 0, 3, 1.0, [])
    assert line == (
        "Epoch 1/3: training loss 0.5000, validation loss 0.2500, yardstick 1.0000; spread 0.1000, 0.2000; rank 3.0000; "
        "learning rate 0.001; 30 s, about 1 min 0 s left"
    )
    assert epoch_line(LOG, 2, 3, 1.0, []).endswith("; 30 s")


@pytest.mark.parametrize(
    ("share", "left"), [(1.0, "30 s"), (0.5, "1 min 0 s"), (0.1, "1 min 40 s"), (0.0, "1 min 40 s")]
)
def test_time_left_after_a_resume_knows_how_much_of_the_epoch_was_computed(share, left):
    """Of an epoch whose second half was computed in 30 s, the next one takes a minute; of less, the earlier epochs tell."""
    assert f"about {left} left" in epoch_line(LOG, 1, 3, share, [90.0, 100.0, 110.0])


@pytest.mark.parametrize(
    ("values", "patience", "ends"),
    [
        ([], 1, False),
        ([3, 2, 1], 1, False),
        ([3, 2, 2], 1, True),
        ([3, 2, 2.5], 2, False),
        ([3, 2, 2.5, 2.1], 2, True),
        ([3, math.nan, math.nan], 2, True),
        ([3, 2, 2], None, False),
    ],
)
def test_early_stop(values, patience, ends):
    assert stalled(values, patience) is ends
    assert stalled([-v for v in values], patience, lower_is_better=False) is ends


def test_counted():
    assert [counted(n, "image") for n in (0, 1, 2, 1234)] == ["0 images", "1 image", "2 images", "1,234 images"]


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines() if line.startswith("  nnUNetv2_")]


def test_next_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Labelled data sets get their own command, with their plans where these are there; for all others ID stands."""
    monkeypatch.setattr(module, "nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setattr(module, "plans_file", lambda name, plans: str(tmp_path / name / f"{plans}.json"))
    for name in ("Dataset004_A", "Dataset005_B", "Dataset006_C"):
        (tmp_path / name / "gt_segmentations").mkdir(parents=True)
    for name in ("Dataset004_A", "Dataset006_C"):
        (tmp_path / name / "gt_segmentations" / "case.nii.gz").touch()
    (tmp_path / "Dataset004_A" / "my plans.json").touch()
    weights = "/results of today/checkpoint_final.pth"
    text = next_commands(["Dataset004_A", "Dataset005_B", "Dataset006_C"], "my plans", "3d_fullres", 2, weights)
    end = ["-pretrained_weights", weights]
    assert commands(text) == [
        ["nnUNetv2_finetune", "4", "-p", "my plans", "-c", "3d_fullres", "-f", "2", *end],
        ["nnUNetv2_finetune", "6", "-f", "2", *end],
        ["nnUNetv2_finetune", "ID", *end],
    ]
    text = next_commands(["Dataset005_B"], "my plans", "3d_fullres", "all", weights)
    assert commands(text) == [["nnUNetv2_finetune", "ID", *end]]
    assert "Dataset005_B has no labels to learn from" in text
