"""Named parts of a training step whose durations somebody may want to know; unasked, they cost nothing.

The parts are marked where the work is done, with `with region("forward"):`, so that what is measured is the training itself
and no copy of its loop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter

import torch

_timer: RegionTimer | None = None  # of the step that is being measured


def region(name: str) -> AbstractContextManager[None]:
    """Context of a part of a step; regions do not nest, and the same name may come several times."""
    return nullcontext() if _timer is None else _timer.region(name)


class RegionTimer:
    """Seconds per region of every step it has watched: `steps`, with "rest" for what lies outside all regions.

    Waits for the device at the borders of regions, so that each one is charged for its own work; steps take longer so.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps: list[dict[str, float]] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._device = device

    def _now(self) -> float:
        torch.get_device_module(self._device).synchronize()
        return perf_counter()

    @contextmanager
    def region(self, name: str) -> Iterator[None]:
        """Add the time of the context to `name`."""
        start = self._now()
        try:
            yield
        finally:
            self._seconds[name] += self._now() - start

    @contextmanager
    def step(self) -> Iterator[None]:
        """Watch the regions of one step."""
        global _timer
        self._seconds.clear()
        start, _timer = self._now(), self
        try:
            yield
        finally:
            _timer = None
        total = self._now() - start
        self.steps.append({**self._seconds, "rest": total - sum(self._seconds.values())})
