"""A batch in parts, each small enough for the memory: split, encoded one by one, put together again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


def _views(tensor: Tensor, name: str, images: int) -> Tensor:
    """[V * B, ...] -> [V, B, ...]."""
    if len(tensor) % images:
        raise ValueError(
            f"{name} {tuple(tensor.shape)} cannot be split into parts: its first axis is no multiple of the {images} images "
            "of the batch. See Method.prepare for what it has to be, or run without accumulate."
        )
    return tensor.unflatten(0, (-1, images))


def split_inputs(
    inputs: Mapping[str, Tensor], images: int, parts: int, counts: Iterable[str]
) -> list[dict[str, Tensor]]:
    """Equal parts of the inputs that a method prepared for `images` images.

    First axes are as `Method.prepare` says. Scalars go to every part; those named in `counts` in equal shares, so that
    every part divides by the mean count.
    """
    if parts == 1:
        return [dict(inputs)]
    split: list[dict[str, Tensor]] = [{} for _ in range(parts)]
    shared = set(counts)
    for name, value in inputs.items():
        if value.ndim == 0:
            pieces: Sequence[Tensor] = [value / parts if name in shared else value] * parts
        else:
            pieces = [p.flatten(0, 1) for p in _views(value, name, images).chunk(parts, dim=1)]
        for part, piece in zip(split, pieces, strict=True):
            part[name] = piece
    return split


def merge_encoded(encoded: Sequence[Mapping[str, Tensor]], images: int) -> dict[str, Tensor]:
    """One dict of encodings from those of equal parts that hold `images` images together; undoes `split_inputs`."""
    if len(encoded) == 1:
        return dict(encoded[0])
    own = images // len(encoded)
    return {
        name: torch.cat([_views(part[name], name, own) for part in encoded], dim=1).flatten(0, 1) for name in encoded[0]
    }
