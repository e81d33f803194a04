"""The largest batch that fits a GPU, and the micro-batches in which a wanted one fits, by counting."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from nnunet_ssl.report.memory_fit import CARDS, FACTOR, GIB, Count, Fit, fits, needed
from nnunet_ssl.trainers.profiling.counting import CountedStep


def fit(
    plans: Mapping[str, Any], configuration: str, method: str, batch: int, processes: int = 1, shard: bool = False
) -> list[Fit]:
    """What fits for a method and these plans, without and with --recompute; `batch`: images per process that are wanted.

    Takes seconds and runs nothing. Raises as `CountedStep` does.
    """
    found = []
    for recompute in (False, True):
        curve = Curve(CountedStep(plans, configuration, method, recompute), processes, shard)
        held = curve.count(batch)
        curve.reach(max(CARDS.values()) * GIB)
        largest = {card: curve.largest(card) for card in CARDS}
        micro_batches = {card: curve.micro_batches(batch, card) for card in CARDS}
        found.append(Fit(recompute, batch, held, largest, micro_batches))
    return found


class Curve:
    """Bytes in each process by its number of images: counted for some numbers, on straight lines between them.

    The true curve is the highest of several straight lines (the forward pass, the backward pass, the optimiser), so lines
    between its points are above it: what is said to fit does.
    """

    def __init__(self, step: CountedStep, processes: int, shard: bool) -> None:
        self.step, self.processes, self.shard = step, processes, shard
        self.smallest: int = step.method.images_needed
        self.points: dict[int, int] = {}
        self.divided: dict[tuple[int, int], int] = {}
        for images in (self.smallest, self.smallest + 1, 2 * self.smallest + 2):
            self.count(images)

    def count(self, images: int) -> int:
        """Bytes with so many images at once."""
        if images not in self.points:
            self.points[images] = self._held(self.step.count(images))
        return self.points[images]

    def at(self, images: int) -> float:
        """Bytes with so many images; a guess above the largest number that was counted."""
        known = sorted(self.points)
        place = min(max(bisect_left(known, images), 1), len(known) - 1)
        low, high = known[place - 1], known[place]
        slope = (self.points[high] - self.points[low]) / (high - low)
        return self.points[low] + slope * (images - low)

    def reach(self, room: float) -> None:
        """Count the batch that needs about `room` bytes, so that all smaller ones lie between points."""
        last = max(self.points)
        slope = max(self.at(last + 1) - self.at(last), 1)
        images = last + int((room - needed(self.points[last])) / (FACTOR * slope))
        if images > last:
            self.count(images + 1)

    def largest(self, card: str) -> int | None:
        """The largest batch that fits a card."""
        upper = max(self.points)
        return next((n for n in range(upper, self.smallest - 1, -1) if fits(self.at(n), card)), None)

    def micro_batches(self, images: int, card: str) -> int | None:
        """The fewest equal micro-batches in which so many images fit a card."""
        for micro_batches in (n for n in range(1, images + 1) if images % n == 0):
            if micro_batches == 1:
                held: float = self.count(images)
            elif not fits(self._least(images // micro_batches), card):
                continue  # spares the counting
            else:
                held = self._divided(images, micro_batches)
            if fits(held, card):
                return micro_batches
        return None

    def _least(self, images: int) -> float:
        """Bytes that a micro-batch needs at least."""
        return self.at(images) if images >= self.smallest else 0

    def _divided(self, images: int, micro_batches: int) -> int:
        if (images, micro_batches) not in self.divided:
            self.divided[images, micro_batches] = self._held(self.step.count(images, micro_batches))
        return self.divided[images, micro_batches]

    def _held(self, count: Count) -> int:
        return count.held(self.processes, self.shard)
