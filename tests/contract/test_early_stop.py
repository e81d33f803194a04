"""The setting early_stop ends a run that does not become better, as a finished one; continued, it stays at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_ssl.trainers.finetuning import SSLScratchTrainer
from nnunet_ssl.trainers.launch import is_finished
from nnunet_ssl.trainers.pretraining import SSLMAETrainer

# Weights stay as they were drawn, so nothing becomes better after the first epoch.
STILL = {"num_epochs": 6, "initial_lr": 0.0, "warmup_epochs": 0, "early_stop": 1, "save_every": 1}


@pytest.mark.parametrize(("trainer_class", "key"), [(SSLMAETrainer, "val_losses"), (SSLScratchTrainer, "val_losses")])
def test_a_run_that_stalls_ends_as_a_finished_one(trainer_class, key, make_trainer, plans_for, monkeypatch):
    plans = plans_for("unet", STILL, STILL)
    trainer = make_trainer(trainer_class, plans)
    if trainer_class is SSLScratchTrainer:  # nnU-Net draws other validation patches in every epoch
        monkeypatch.setattr(
            trainer_class, "on_validation_epoch_end", lambda self, _: log_no_progress(self), raising=False
        )
    trainer.run_training()
    folder = Path(trainer.output_folder)
    assert len(trainer.logger.local_logger.my_fantastic_logging[key]) == 2
    assert torch.load(folder / "checkpoint_final.pth", weights_only=False)["current_epoch"] == 2
    assert not (folder / "checkpoint_latest.pth").exists()
    assert "Ended after 2 epochs: " in next(folder.glob("training_log*.txt")).read_text()

    again = make_trainer(trainer_class, plans)
    again.load_checkpoint(str(folder / "checkpoint_final.pth"))
    again.run_training()
    assert len(again.logger.local_logger.my_fantastic_logging[key]) == 2
    if trainer_class is SSLMAETrainer:
        assert not is_finished(str(folder), 6, 1)  # it was not validated
        again.perform_actual_validation()
        assert is_finished(str(folder), 6, 1)
        assert not is_finished(str(folder), 6)


def log_no_progress(trainer) -> None:
    epoch = trainer.current_epoch
    trainer.logger.log("mean_fg_dice", 0.5, epoch)
    trainer.logger.log("dice_per_class_or_region", [0.5], epoch)
    trainer.logger.log("val_losses", 1.0, epoch)
