"""nnU-Net's logger for runs that have no Dice."""

from __future__ import annotations

import os
from typing import Any

from nnunetv2.training.logging.nnunet_logger import LocalLogger, MetaLogger

from nnunet_ssl.report.progress import draw_progress


class PretextLogger(LocalLogger):
    """One value per epoch and key; keys beyond nnU-Net's own appear when they are first logged."""

    def __init__(self) -> None:
        super().__init__()
        keys = ("train_losses", "val_losses", "lrs", "epoch_start_timestamps", "epoch_end_timestamps")
        self.my_fantastic_logging: dict[str, list[Any]] = {key: [] for key in keys}

    def log(self, key: str, value: Any, epoch: int) -> None:
        """Store the value of an epoch; an epoch that is repeated after an interruption replaces its value."""
        values = self.my_fantastic_logging.setdefault(key, [float("nan")] * epoch)
        del values[epoch:]
        values.append(value)

    def plot_progress_png(self, output_folder: str) -> None:
        """Draw progress.png into the folder."""
        draw_progress(self.my_fantastic_logging, os.path.join(output_folder, "progress.png"))


def use_pretext_logger(logger: MetaLogger) -> None:
    """Swap the local half of nnU-Net's logger, leaving its Weights & Biases half as it is."""
    logger.local_logger = PretextLogger()
