"""A fine-tuning that is asked to stop saves and goes on later; a damaged checkpoint does not end it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.trainers.finetuning import (
    SSLFinetuneTrainer,
    SSLFinetuneValleyTrainer,
    SSLScratchTrainer,
)
from nnunet_ssl.trainers.loop.interruption import FINISH_EPOCH

SHORT = {"num_epochs": 3, "decoder_epochs": 1, "warmup_epochs": 1, "num_iterations_per_epoch": 2}
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="POSIX signals")


@pytest.fixture
def make(make_trainer, plans_for, monkeypatch):
    """Function (class, whether it continues) -> trainer."""
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda *_: None)
    monkeypatch.setattr(SSLFinetuneTrainer, "_check_start", lambda *_: None)

    def build(trainer_class, continues=False):
        trainer = make_trainer(trainer_class, plans_for("unet", finetune=SHORT))
        trainer.plans_manager.plans["continue_training"] = continues
        return trainer

    return build


def latest(trainer) -> str:
    return str(Path(trainer.output_folder) / "checkpoint_latest.pth")


def stopped(trainer, number, epoch, where="train_step"):
    """Train until the signal of that epoch has ended it; the exit code."""
    original = getattr(trainer, where)

    def step(batch):
        if trainer.current_epoch == epoch:
            signal.raise_signal(number)
        return original(batch)

    setattr(trainer, where, step)
    with pytest.raises(SystemExit) as left:
        trainer.run_training()
    return left.value.code


@pytest.mark.parametrize(
    ("trainer_class", "number", "epoch", "where", "begins"),
    [
        (SSLScratchTrainer, signal.SIGTERM, 0, "train_step", 0),
        (SSLScratchTrainer, signal.SIGUSR1, 1, "validation_step", 1),
        (SSLFinetuneValleyTrainer, signal.SIGINT, 1, "train_step", 1),  # the encoder has just been thawed
        (SSLScratchTrainer, signal.SIGUSR2, 1, "train_step", 2),
    ],
)
def test_saves_and_goes_on(trainer_class, number, epoch, where, begins, make):
    before = signal.getsignal(number)
    first = make(trainer_class)
    assert stopped(first, number, epoch, where) == 128 + number
    assert signal.getsignal(number) is before
    saved = read_checkpoint(latest(first))
    assert all(torch.equal(saved["network_weights"][k], v) for k, v in first.network.state_dict().items())
    second = make(trainer_class, continues=True)
    second.load_checkpoint(latest(first))
    assert second.current_epoch == begins
    second.run_training()
    log = second.logger.local_logger.my_fantastic_logging
    assert {len(values) for values in log.values()} == {3}
    assert log["lrs"] == [second.schedule.lr(e) for e in range(3)]
    # Batches are made in this process here, so that the run ends as one that nobody disturbed.
    straight = make(trainer_class)
    straight.run_training()
    undisturbed = straight.logger.local_logger.my_fantastic_logging
    for losses in ("train_losses", "val_losses", "mean_fg_dice"):
        assert log[losses] == undisturbed[losses]
    weights = straight.network.state_dict()
    assert [k for k, v in second.network.state_dict().items() if not torch.equal(v, weights[k])] == []


def test_file_finishes_the_epoch(make):
    first = make(SSLScratchTrainer)
    file = Path(first.output_folder) / FINISH_EPOCH
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with pytest.raises(SystemExit) as left:
        first.run_training()
    assert left.value.code == 128 + signal.SIGUSR2
    assert not file.exists()
    assert read_checkpoint(latest(first))["current_epoch"] == 1


def test_best_stands_in_for_a_damaged_latest(make):
    first = make(SSLScratchTrainer)
    first.save_every = 1
    stopped(first, signal.SIGTERM, 2)
    content = Path(latest(first)).read_bytes()
    Path(latest(first)).write_bytes(content[: len(content) // 2])
    second = make(SSLScratchTrainer, continues=True)
    second.load_checkpoint(latest(first))
    assert second.current_epoch in (1, 2)
    log = Path(second.log_file).read_text()
    assert "WARNING: Skipped checkpoint_latest.pth" in log
    assert "checkpoint_best.pth" in log
    second.run_training()
    with pytest.raises(CheckpointError):  # who does not continue means this file and no other
        make(SSLScratchTrainer).load_checkpoint(latest(first)[: -len("latest.pth")] + "nowhere.pth")
