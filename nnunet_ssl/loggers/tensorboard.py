"""TensorBoard: event files in the run's own folder, `tensorboard/`. Nothing leaves the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter

from nnunet_ssl.loggers.base import RunLogger


class TensorBoardLogger(RunLogger):
    """Curves, pictures and settings; of a continued run TensorBoard hides what was logged of epochs that come again."""

    leaves_folder: ClassVar[bool] = False

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / "tensorboard"
        self._config: dict[str, Any] = {}
        self._opened: SummaryWriter | None = None

    def update_config(self, config: dict[str, Any]) -> None:
        """Kept, and written with the first number: the step of that tells what is out of date."""
        self._config.update(config)

    def log(self, key: str, value: float, step: int) -> None:
        """A point of a curve; `train_losses` is called `losses/train`, so that training and validation share a picture."""
        kind, _, rest = key.partition("_")
        self._writer(step).add_scalar(f"{rest}/{kind}" if kind in ("train", "val") else key, value, step)

    def log_summary(self, key: str, value: float) -> None:
        """A text: TensorBoard knows no numbers without a step."""
        self._writer(0).add_text(key, f"{value:.4f}")

    def log_picture(self, key: str, file: Path, step: int) -> None:
        """As it is."""
        self._writer(step).add_image(key, imread(file)[..., :3], step, dataformats="HWC")

    def finish(self) -> None:
        """All of it is on the disk."""
        if self._opened is not None:
            self._opened.flush()

    def _writer(self, step: int) -> SummaryWriter:
        if self._opened is None:
            self._opened = SummaryWriter(str(self.folder), purge_step=step, flush_secs=30)
            for key, value in self._config.items():
                shown = json.dumps(value, indent=2, default=str)
                self._opened.add_text(key, "    " + shown.replace("\n", "\n    "), step)
        return self._opened
