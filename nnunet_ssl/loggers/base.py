"""What a logger of a training is asked: nnU-Net's own four questions, and one for pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar


class RunLogger(ABC):
    """Follows one training, of one fold. The first process has one, the others none.

    Steps are epochs, from 0 as in nnU-Net's own loggers. A run that is continued makes its logger anew, and the first step it
    logs may be one that was logged before: it counts, with all that follow. What a logger raises ends the logger, not the run.
    """

    leaves_folder: ClassVar[bool] = True  # whether what is logged goes anywhere but into the run's folder

    @abstractmethod
    def __init__(self, folder: Path, name: str) -> None:
        """folder: of the run's results. name: of the run, to tell it from others."""

    @abstractmethod
    def update_config(self, config: dict[str, Any]) -> None:
        """Take settings in: nested dicts of plain values; several times, with other keys."""

    @abstractmethod
    def log(self, key: str, value: float, step: int) -> None:
        """Take a number of an epoch in; it may be NaN."""

    @abstractmethod
    def log_summary(self, key: str, value: float) -> None:
        """Take a number of the whole run in."""

    @abstractmethod
    def log_picture(self, key: str, file: Path, step: int) -> None:
        """Take a PNG file of an epoch in."""

    def finish(self) -> None:  # noqa: B027  most have nothing to do
        """The training has reached its end; a summary may still follow."""


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys joined by points."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        found.update(flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return found
