"""Epochs of nnU-Net's training that an interruption divides: what is done of them is not done again.

Before every batch the random numbers begin anew from (seed, epoch, iteration). Where batches are made in the training's own
process (nnUNet_n_proc_DA=0), a run that was interrupted at any place ends as one that nobody disturbed, on a CPU to the last bit.
nnU-Net's workers draw as they like; there an interrupted epoch goes on with other batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from nnunet_ssl.trainers.data.corpus import VALIDATION, derive_seed, seed_everything

KEY = "unfinished_epoch"  # in nnU-Net's log inside a checkpoint: [epoch, losses of its finished iterations]


class Iterations:
    """The iterations of the running epoch: losses of the finished ones, and those that an earlier process has finished.

    shared: whether several processes train together; each has losses of its own then, and one checkpoint for all, so that an
    epoch is trained again from its first iteration.
    """

    def __init__(self, seed: int, shared: bool) -> None:
        self.seed, self.shared, self.epoch = seed, shared, 0
        self.losses: list[float] = []
        self._before: list[float] = []

    def begin(self, epoch: int) -> None:
        """An epoch begins, perhaps one that was begun before."""
        self.epoch, self.losses = epoch, []
        self._seed()

    def finished_before(self) -> dict[str, Any] | None:
        """The result of the next iteration, where an earlier process has finished it."""
        number = len(self.losses)
        return {"loss": np.array(self._before[number], np.float32)} if number < len(self._before) else None

    def note(self, loss: float) -> None:
        """An iteration is finished."""
        self.losses.append(loss)
        self._seed()

    def begin_validation(self) -> None:
        """The batches that are only watched come from numbers of their own."""
        if not self.shared:
            seed_everything(derive_seed(self.seed, self.epoch, VALIDATION))

    def end(self) -> None:
        """The epoch is finished: nothing of it is to be remembered."""
        self.losses, self._before = [], []

    @contextmanager
    def within(self, log: dict[str, Any], epoch: int) -> Iterator[None]:
        """In the block, nnU-Net's log holds what is finished of `epoch`, with which a checkpoint written there goes on."""
        done = max(self.losses, self._before, key=len)
        if done and not self.shared and epoch == self.epoch:
            log[KEY] = [epoch, done]
        try:
            yield
        finally:
            log.pop(KEY, None)

    def take_from(self, log: dict[str, Any], epoch: int) -> None:
        """Take over what a loaded log holds of `epoch`, with which the run goes on."""
        stored = log.pop(KEY, None)
        there, losses = stored if stored else (None, [])
        self._before = [float(loss) for loss in losses] if there == epoch and not self.shared else []

    def _seed(self) -> None:
        if not self.shared:
            seed_everything(derive_seed(self.seed, self.epoch, len(self.losses), 0))
