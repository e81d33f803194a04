"""Two processes on one machine, talking through gloo."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from nnunet_ssl.trainers.launch import Run, launch, output_folder


@pytest.mark.parametrize("backbone", ["unet", "primus"])
def test_two_processes_train_resume_and_write_once(backbone, preprocessed_dataset, plans_for):
    from tests.contract.conftest import DATASET_JSON

    for epochs in (1, 2):
        plans = plans_for(backbone, {"num_epochs": epochs, "warmup_epochs": 0, "batch_size": 4})
        launch(Run(plans, "3d_fullres", "all", deepcopy(DATASET_JSON), "mae", "cpu"), num_processes=2)
    folder = Path(output_folder("mae", plans, "3d_fullres", "all"))
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["current_epoch"] == 2
    assert len(checkpoint["logging"]["train_losses"]) == 2
    assert not any(key.startswith("module.") for key in checkpoint["network_weights"])
    assert len(list(folder.glob("training_log*.txt"))) == 2
    assert (folder / "validation" / "summary.json").is_file()


def test_batch_that_cannot_be_shared_is_refused(preprocessed_dataset, plans_for):
    from tests.contract.conftest import DATASET_JSON

    plans = plans_for("unet", {"num_epochs": 1, "warmup_epochs": 0, "batch_size": 3})
    with pytest.raises(Exception, match="--batch-size 4"):
        launch(Run(plans, "3d_fullres", "all", deepcopy(DATASET_JSON), "mae", "cpu"), num_processes=2)
