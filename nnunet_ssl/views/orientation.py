"""Quarter turns and mirrorings of a batch, another one for every sample."""

from __future__ import annotations

import torch
from torch import Tensor


def _per_sample(chosen: Tensor, ndim: int) -> Tensor:
    return chosen.view(-1, *(1,) * (ndim - 1))


def mirror(x: Tensor, flips: Tensor) -> Tensor:
    """Mirror images [N, C, *spatial] along the axes where `flips` [N, D] (bool) is True."""
    for axis in range(flips.shape[1]):
        x = torch.where(_per_sample(flips[:, axis], x.ndim), x.flip(axis + 2), x)
    return x


def turn(x: Tensor, turns: Tensor, axes: tuple[int, int] = (-2, -1)) -> Tensor:
    """Turn images [N, C, *spatial] by `turns` [N] in {0, 1, 2, 3} quarters in the plane of two axes, as torch.rot90.

    A plane whose axes differ in length cannot be turned by a quarter. There the four classes are the four symmetries
    of a rectangle: nothing (0), the first axis mirrored (1), half a turn (2), the second axis mirrored (3).
    """
    first, second = axes
    if x.shape[first] == x.shape[second]:
        x = torch.where(_per_sample(turns % 2 == 1, x.ndim), x.transpose(first, second), x)
    x = torch.where(_per_sample((turns == 1) | (turns == 2), x.ndim), x.flip(first), x)
    return torch.where(_per_sample((turns == 2) | (turns == 3), x.ndim), x.flip(second), x)
