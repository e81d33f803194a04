"""Two processes on one machine, talking through gloo."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from nnunet_ssl.trainers.launch import Run, launch, output_folder
from nnunet_ssl.trainers.pretraining import SSLMAETrainer


@pytest.mark.slow
def test_two_processes_train_resume_and_write_once(preprocessed_dataset, plans_for, dataset_json):
    for epochs in (1, 2):
        # The second epoch goes through the networks in two parts.
        ssl = {"num_epochs": epochs, "warmup_epochs": 0, "batch_size": 4, "accumulate": epochs}
        plans = plans_for("unet", ssl)
        launch(Run(plans, "3d_fullres", "all", deepcopy(dataset_json), "mae", "cpu"), num_processes=2)
    folder = Path(output_folder("mae", plans, "3d_fullres", "all"))
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["current_epoch"] == 2
    assert len(checkpoint["logging"]["train_losses"]) == 2
    assert not any(key.startswith("module.") for key in checkpoint["network_weights"])
    assert len(list(folder.glob("training_log*.txt"))) == 2
    assert (folder / "validation" / "summary.json").is_file()


def test_batch_that_cannot_be_shared_is_refused(make_trainer, plans_for, monkeypatch):
    trainer = make_trainer(SSLMAETrainer, plans_for("unet", {"batch_size": 3}))
    trainer.is_ddp = True
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="--batch-size 4"):
        trainer._set_batch_size_and_oversample()
