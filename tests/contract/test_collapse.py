"""A run that learns nothing says so, and ends by itself where that was asked for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nnunet_ssl.trainers.loop import judging
from nnunet_ssl.trainers.loop.judging import COLLAPSED, YARDSTICK
from nnunet_ssl.trainers.pretraining import SSLMAETrainer

STILL = {"num_epochs": 3, "initial_lr": 0.0, "warmup_epochs": 0}  # weights stay as they were drawn


def log_of(trainer) -> str:
    return next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()


def test_a_run_at_its_yardstick_is_warned_of_once(make_trainer, plans_for, monkeypatch):
    monkeypatch.setattr(judging, "STEPS", 1)
    trainer = make_trainer(SSLMAETrainer, plans_for("unet", STILL))
    trainer.run_training()
    logged = trainer.logger.local_logger.my_fantastic_logging
    yardsticks = logged[YARDSTICK]
    assert len(yardsticks) == 3
    assert len(set(yardsticks)) == 1, "the held-out batches are the same in every epoch"
    assert math.isfinite(yardsticks[0])
    assert logged["val_losses"][-1] >= yardsticks[0]
    log = log_of(trainer)
    assert log.count("no better than an answer that does not look at the image") == 1
    assert "--stop-on-collapse" in log
    assert "No better than guessing: the validation loss is" in log
    assert "the mean grey value would give" in log


def test_it_ends_with_its_own_exit_code_where_asked(make_trainer, plans_for, monkeypatch):
    monkeypatch.setattr(judging, "STEPS", 1)
    trainer = make_trainer(SSLMAETrainer, plans_for("unet", {**STILL, "stop_on_collapse": True}))
    with pytest.raises(SystemExit) as ending:
        trainer.run_training()
    assert ending.value.code == COLLAPSED
    assert (Path(trainer.output_folder) / "checkpoint_latest.pth").is_file()
    assert "Stopped after 1 epoch: the validation loss" in log_of(trainer)
