"""Every registered trainer, seen as an attribute: nnU-Net searches the modules of nnUNet_extTrainer by `hasattr`."""

from __future__ import annotations

from typing import Any

from nnunet_ssl.integration.class_lookup import find_registered


def __getattr__(name: str) -> Any:
    trainer = None if name.startswith("__") else find_registered("nnunetv2.trainers", name)
    if trainer is None:
        raise AttributeError(name)
    return trainer
