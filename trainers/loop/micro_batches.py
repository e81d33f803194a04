"""A batch in micro-batches, each small enough for the memory: split, encoded one by one, put together again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


def _views(tensor: Tensor, name: str, images: int) -> Tensor:
    """[V * B, ...] -> [V, B, ...]."""
    if len(tensor) % images:
        raise ValueError(
            f"{name} {tuple(tensor.shape)} cannot be split into micro-batches: its first axis is no multiple of the "
            f"{images} images of the batch. See Method.prepare for what it has to be, or run without accumulate."
        )
    return tensor.unflatten(0, (-1, images))


def split_inputs(
    inputs: Mapping[str, Tensor], images: int, micro_batches: int, counts: Iterable[str]
) -> list[dict[str, Tensor]]:
    """Equal parts of the inputs that a method prepared for `images` images.

    First axes are as `Method.prepare` says. Scalars go to every micro-batch; those named in `counts` in equal shares, so that
    every micro-batch divides by the mean count.
    """
    if micro_batches == 1:
        return [dict(inputs)]
    split: list[dict[str, Tensor]] = [{} for _ in range(micro_batches)]
    shared = set(counts)
    for name, value in inputs.items():
        if value.ndim == 0:
            pieces: Sequence[Tensor] = [value / micro_batches if name in shared else value] * micro_batches
        else:
            pieces = [p.flatten(0, 1) for p in _views(value, name, images).chunk(micro_batches, dim=1)]
        for micro_batch, piece in zip(split, pieces, strict=True):
            micro_batch[name] = piece
    return split


def merge_encoded(encoded: Sequence[Mapping[str, Tensor]], images: int) -> dict[str, Tensor]:
    """One dict of encodings from those of equal micro-batches that hold `images` images together; undoes `split_inputs`."""
    if len(encoded) == 1:
        return dict(encoded[0])
    own = images // len(encoded)
    return {
        name: torch.cat([_views(micro_batch[name], name, own) for micro_batch in encoded], dim=1).flatten(0, 1)
        for name in encoded[0]
    }
