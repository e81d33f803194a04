"""What a comparison cannot begin with, found before anything is written."""

from __future__ import annotations

import torch

from nnunet_ssl.checkpoints.hub.resolve import resolve_source
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.comparison.description import Description
from nnunet_ssl.corpus.datasets import load_plans, raw_folder
from nnunet_ssl.planners.finetuning.plan_finetune import require_labels
from nnunet_ssl.trainers.device.devices import require_device
from nnunet_ssl.trainers.finetune_folds import require_trainer


def require_possible(description: Description, device: str) -> None:
    """Raise for trainers, checkpoints, plans, labels or a device that are not there: the errors of what uses them."""
    for trainer in dict.fromkeys(arm.trainer for arm in description.arms):
        require_trainer(trainer)
    for arm in description.arms:
        if arm.weights is not None:
            read_checkpoint(resolve_source(arm.weights).path)
    for entry in description.datasets:
        if raw_folder(entry.dataset) is not None:
            require_labels(entry.dataset)
        for plans in dict.fromkeys(arm.plans for arm in description.arms if arm.plans is not None):
            load_plans(entry.dataset, plans)
    require_device(torch.device(device))
