"""Which batch fits which GPU, by the bytes that a training step was counted to need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_ssl.corpus.overview.sections import Section

GIB = 2**30
# GiB that programs find on cards sold with so much memory: RTX 3090 and 4090, A100, A100 and H100.
CARDS = {"24 GB": 23.5, "40 GB": 39.4, "80 GB": 79.1}
# Gaps between tensors and the workspace of kernels grow with the tensors; the CUDA context and loaded kernels do not.
FACTOR, CONTEXT = 1.1, 1.5 * GIB


@dataclass(frozen=True)
class Count:
    """Bytes of a training step of one process with `images` images, which go through the network in `micro_batches`.

    peak: of all tensors at once. states: weights and optimiser. gradients: of all parameters; gradients_at_peak: those of
    them that are within the peak.
    """

    images: int
    micro_batches: int
    peak: int
    states: int
    gradients: int
    gradients_at_peak: int

    def held(self, processes: int = 1, shard: bool = False) -> int:
        """The peak in each of several processes with so many images each.

        DDP keeps room for all gradients all the time. Shards divide states and gradients evenly; what a block is put
        together to while it computes is left out.
        """
        if shard:
            return self.peak - (self.states + self.gradients_at_peak) * (processes - 1) // processes
        return self.peak if processes == 1 else self.peak + self.gradients - self.gradients_at_peak


def needed(held: float) -> float:
    """Bytes that a GPU has to have for tensors of `held` bytes."""
    return FACTOR * held + CONTEXT


def fits(held: float, card: str) -> bool:
    """Whether a card of `CARDS` has room for tensors of `held` bytes."""
    return needed(held) <= CARDS[card] * GIB


@dataclass(frozen=True)
class Fit:
    """What fits, with or without recomputing activations.

    held: bytes of `batch` images per process at once. largest: the largest batch per process that fits each card, None where
    none does. micro_batches: into how many equal micro-batches `batch` has to be taken to fit, None where it never does.
    """

    recompute: bool
    batch: int
    held: int
    largest: dict[str, int | None]
    micro_batches: dict[str, int | None]


def fit_section(found: Sequence[Fit], processes: int, shard: bool) -> Section:
    """The table for a person."""

    def label(first: str, fit: Fit) -> str:
        return "  with --recompute" if fit.recompute else first

    def accumulated(micro_batches: int | None) -> str:
        return (
            "does not fit"
            if micro_batches is None
            else "fits"
            if micro_batches == 1
            else f"--accumulate {micro_batches}"
        )

    batch = found[0].batch
    rows = [(label("largest batch per GPU", f), *(_number(n) for n in f.largest.values())) for f in found]
    rows += [(label(f"this run, {batch} per GPU", f), *map(accumulated, f.micro_batches.values())) for f in found]
    counted = ", ".join(f"{f.held / GIB:.1f} GiB{' with --recompute' * f.recompute}" for f in found)
    caption = (
        f"Tensors of {batch} images, bfloat16: {counted}. A GPU is asked for {FACTOR} x that + {CONTEXT / GIB:g} GiB."
    )
    if shard:
        caption += (
            f"\n  Assumed: {processes} processes hold equal shares of weights, gradients and optimiser; blocks that are put "
            "together while they compute come on top."
        )
    elif processes > 1:
        caption += f"\n  Each of {processes} processes holds everything, and room for all gradients."
    return Section("Memory, counted without running a step", ("", *CARDS), rows, caption)


def _number(images: int | None) -> str:
    return "none" if images is None else str(images)
