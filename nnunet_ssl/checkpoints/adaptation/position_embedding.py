"""Interpolate learned position embeddings from one token grid to another."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch.nn.functional as F
from torch import Tensor

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def grid_of(patch_size: Sequence[int] | None, token_size: Sequence[int] | None) -> tuple[int, ...] | None:
    """Tokens per axis of a patch (voxels) cut into tokens (voxels); None where unknown, of unequal rank or empty."""
    if patch_size is None or token_size is None or len(patch_size) != len(token_size) or 0 in token_size:
        return None
    return tuple(int(p) // int(t) for p, t in zip(patch_size, token_size, strict=True))


def cubic_grid(num_tokens: int, ndim: int) -> tuple[int, ...] | None:
    """The grid with equal sides that holds `num_tokens`, or None."""
    side = round(num_tokens ** (1 / ndim))
    return (side,) * ndim if side**ndim == num_tokens else None


def first_fitting(num_tokens: int, candidates: Sequence[Sequence[int] | None]) -> tuple[int, ...] | None:
    """The first of the candidate grids that holds exactly `num_tokens`."""
    return next((tuple(map(int, c)) for c in candidates if c is not None and prod(c) == num_tokens), None)


def resize_position_embedding(embedding: Tensor, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """Embedding [1, N, C] on the grid `source` -> [1, M, C] on the grid `target`, tokens in natural order (A0, A1, A2).

    Linear interpolation between token centres (align_corners False), as OpenMind's fine-tuning does it.
    """
    channels = embedding.shape[-1]
    grid = embedding.float().transpose(1, 2).reshape(1, channels, *source)
    grid = F.interpolate(grid, size=tuple(target), mode=LINEAR[len(source)], align_corners=False)
    return grid.flatten(2).transpose(1, 2).contiguous().to(embedding.dtype)
