"""Where a run stands: everything about its progress that is neither weight nor log."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Phase(Enum):
    """What a run is doing in `Position.epoch`."""

    TRAINING = "training"  # from the epoch's first line on
    VALIDATION = "validation"
    ENDED = "ended"  # the epoch is complete; its log lines, checkpoints and pictures are being written
    FINISHED = "finished"  # the run is; `epoch` is the number of its epochs


@dataclass
class Position:
    """Where a run stands. A checkpoint that is written at any moment continues from `resume_epoch` and `resume_results`.

    finished: results of this epoch's training iterations so far. replayed: of those that an interrupted epoch has behind it.
    validated: validation iterations of this epoch so far. best: lowest validation loss of an epoch, by which the best
    checkpoint is chosen; None before there is one. resumed: whether it came from a checkpoint, be it one of the very first line.
    """

    epoch: int = 0
    phase: Phase = Phase.TRAINING
    finished: list[dict[str, Any]] = field(default_factory=list)
    replayed: list[dict[str, Any]] = field(default_factory=list)
    validated: int = 0
    best: float | None = None
    resumed: bool = False

    @property
    def iteration(self) -> int:
        """Number of the next iteration within the epoch's training or validation."""
        return self.validated if self.phase is Phase.VALIDATION else len(self.finished)

    @property
    def resume_epoch(self) -> int:
        """The epoch in which a run continues from here."""
        return self.epoch + 1 if self.phase is Phase.ENDED else self.epoch

    @property
    def resume_results(self) -> list[dict[str, Any]]:
        """Results of the iterations which that epoch has behind it."""
        if self.phase in (Phase.ENDED, Phase.FINISHED):
            return []
        return [*self.finished, *self.replayed[len(self.finished) :]]

    def begin_epoch(self) -> None:
        """The first line of an epoch; what an interrupted one has behind it is replayed."""
        self.phase, self.finished, self.validated = Phase.TRAINING, [], 0

    def next_epoch(self) -> None:
        """The last line of an epoch."""
        self.epoch += 1
        self.begin_epoch()

    def resume(self, epoch: int, results: list[dict[str, Any]], best: float | None) -> None:
        """Stand where a checkpoint was written."""
        self.epoch, self.phase, self.finished, self.validated = epoch, Phase.TRAINING, [], 0
        self.replayed, self.best, self.resumed = list(results), best, True
