"""Progress bars on a terminal; nothing elsewhere, where the log lines do."""

from __future__ import annotations

import sys
import time

from torch import Tensor
from tqdm import tqdm


class EpochBar:
    """A bar over the iterations of one epoch, with the loss of now and then.

    Reading a loss waits for the device, so it is read twice a second at most, and never when nobody is looking.
    """

    def __init__(self, epoch: int, num_epochs: int, iterations: int, done: int) -> None:
        self._bar = tqdm(
            total=iterations,
            initial=done,
            desc=f"Epoch {epoch + 1}/{num_epochs}",
            unit="it",
            leave=False,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        self._read_at = 0.0

    def update(self, loss: Tensor) -> None:
        """Count one iteration."""
        if self._bar.disable:
            return
        if time.monotonic() - self._read_at > 0.5:
            self._bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            self._read_at = time.monotonic()
        self._bar.update()

    def close(self) -> None:
        """Take the bar off the screen."""
        self._bar.close()


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 12 min, 2 d 3 h."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"
