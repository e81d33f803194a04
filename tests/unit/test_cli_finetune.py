"""nnUNetv2_finetune: its words, what of the folds is left to do, and the command that predicts."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssl.cli.finetune import build_parser
from nnunet_ssl.errors import MachineError, SettingsError
from nnunet_ssl.trainers import finetune_folds
from nnunet_ssl.trainers.finetune_folds import Finetuning, next_commands, require_trainer, train_folds

JOB = Finetuning("Dataset004_Tiny", "3d_fullres", "SSLFinetuneTrainer", "my_plans", "weights.pth", "cpu")


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("4", ("4", None, [])),
        ("-d 4 -f 0 1 2", ("4", None, ["0", "1", "2"])),
        ("4 3d_fullres 0", ("4", "3d_fullres", ["0"])),
        ("4 -c 2d -f all -p nnUNetPlans --c", ("4", "2d", ["all"])),
        ("4 3d_fullres 0 -f 0 3 -num_gpus 2", ("4", "3d_fullres", ["0", "3"])),
    ],
)
def test_words(typed, understood):
    args = build_parser().parse_args([*typed.split(), "-pretrained_weights", "X"])
    assert (args.dataset, args.configuration, args.folds) == understood


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results, with fold 0 finished, fold 1 interrupted, fold 2 trained but not validated."""
    monkeypatch.setattr(finetune_folds, "nnUNet_results", str(tmp_path))
    for fold, files in {0: ("checkpoint_final",), 1: ("checkpoint_latest",), 2: ("checkpoint_final",)}.items():
        folder = Path(JOB.folder(str(fold)))
        (folder / "validation").mkdir(parents=True)
        for file in files:
            torch.save({"current_epoch": 5, "network_weights": {}}, folder / f"{file}.pth")
    summary = {"foreground_mean": {"Dice": 0.87654}}
    (Path(JOB.folder("0")) / "validation" / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_each_fold_is_trained_once_and_goes_on_where_it_stopped(results, monkeypatch, capsys):
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        finetune_folds,
        "run_training",
        lambda *args, **kwargs: asked.append((args[2], args[5], kwargs["continue_training"])),
    )
    monkeypatch.setattr(finetune_folds, "use_threads", lambda _: None)
    train_folds(JOB, ["0", "1", "2", "3", "all"])
    # Nothing of fold 0; weights only where there is nothing to continue, or nnU-Net would refuse.
    assert asked == [(1, None, True), (2, None, True), (3, "weights.pth", False), ("all", "weights.pth", False)]
    said = capsys.readouterr().out
    assert [word in said for word in ("Fold 0 is finished", "Fold 1 goes on", "Fold 3 begins")] == [True] * 3


def test_the_end_tells_the_dice_and_a_command_for_the_finished_folds(results):
    text = next_commands(JOB, ["0", "1"])
    assert "fold 0: 0.8765" in text
    assert "fold 1" not in text
    command = shlex.split(text.splitlines()[-1])
    assert command[0] == "nnUNetv2_predict"
    assert command[command.index("-f") + 1 :] == ["0", "-device", "cpu"]
    assert command[command.index("-p") + 1] == "my_plans"


def test_several_gpus_that_are_not_there(results):
    with pytest.raises(MachineError, match="Leave out --num-gpus"):
        train_folds(JOB, ["0"], num_gpus=2)


def test_trainers_that_do_not_fine_tune():
    require_trainer("SSLScratchTrainer")
    with pytest.raises(SettingsError, match="pre-trains"):
        require_trainer("SSLMAETrainer")
    with pytest.raises(SettingsError, match="Did you mean SSLFinetuneTrainer"):
        require_trainer("SSLFinetuneTrainr")
