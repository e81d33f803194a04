"""Named parts of a training step whose durations somebody may want to know; unasked, they cost nothing.

The parts are marked where the work is done, with `with span("forward"):`, so that what is measured is the training itself
and no copy of its loop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter

import torch

_timer: SpanTimer | None = None  # of the step that is being measured


def span(name: str) -> AbstractContextManager[None]:
    """Context of a part of a step; spans do not nest, and the same name may come several times."""
    return nullcontext() if _timer is None else _timer.span(name)


class SpanTimer:
    """Seconds per span of every step it has watched: `steps`, with "rest" for what lies outside all spans.

    Waits for the device at the borders of spans, so that each one is charged for its own work; steps take longer so.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps: list[dict[str, float]] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._device = device

    def _now(self) -> float:
        torch.get_device_module(self._device).synchronize()
        return perf_counter()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Add the time of the context to `name`."""
        start = self._now()
        try:
            yield
        finally:
            self._seconds[name] += self._now() - start

    @contextmanager
    def step(self) -> Iterator[None]:
        """Watch the spans of one step."""
        global _timer
        self._seconds.clear()
        start, _timer = self._now(), self
        try:
            yield
        finally:
            _timer = None
        total = self._now() - start
        self.steps.append({**self._seconds, "rest": total - sum(self._seconds.values())})
