"""Which checkpoints are written after which epoch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from nnunet_ssl.trainers.loop import epochs
from nnunet_ssl.trainers.loop.position import Position


def test_the_best_checkpoint_is_written_no_more_often_than_the_latest(monkeypatch):
    losses, saved = [5.0, 4.0, 3.0, 2.0, 3.5, 4.0, 1.5], []
    trainer: Any = SimpleNamespace(num_epochs=7, save_every=2, position=Position(), print_to_log_file=lambda *_: None)
    trainer.share_of_epoch = 1.0
    monkeypatch.setattr(epochs, "is_first", lambda: False)  # no pictures
    monkeypatch.setattr(epochs, "update_report", lambda _: None)
    monkeypatch.setattr(epochs, "save_unless_disk_is_full", lambda t, name: saved.append((t.current_epoch, name)))
    for epoch, loss in enumerate(losses):
        log = {name: [0.0] for name in ("epoch_start_timestamps", "epoch_end_timestamps", "train_losses", "lrs")}
        log["val_losses"] = [loss]
        trainer.logger = SimpleNamespace(log=lambda *_: None, local_logger=SimpleNamespace(my_fantastic_logging=log))
        trainer.current_epoch = epoch
        epochs.finish_epoch(trainer)
    latest, best = "checkpoint_latest.pth", "checkpoint_best.pth"
    assert saved == [(1, latest), (1, best), (3, latest), (3, best), (5, latest), (6, best)]
    assert trainer.position.best == 1.5
