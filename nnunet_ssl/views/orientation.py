"""Quarter turns and mirrorings of a batch, another one for every sample, known on the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def mirror(x: Tensor, flips: np.ndarray) -> Tensor:
    """Mirror images [N, C, *spatial] along the axes where `flips` [N, D] (bool) is True."""
    return torch.stack(list(mirrored_and_turned(x, flips, np.zeros(len(x), dtype=int))))


def turn(x: Tensor | Sequence[Tensor], turns: np.ndarray, axes: tuple[int, int] = (-2, -1)) -> Tensor:
    """Turn images [N, C, *spatial] by `turns` [N] in {0, 1, 2, 3} quarters in the plane of two axes, as torch.rot90.

    A plane whose axes differ in length cannot be turned by a quarter. There the four classes are the four symmetries
    of a rectangle: nothing (0), the first axis mirrored (1), half a turn (2), the second axis mirrored (3).
    """
    nothing = np.zeros((len(x), x[0].ndim - 1), dtype=bool)
    return torch.stack(list(mirrored_and_turned(x, nothing, turns, axes)))


def mirrored_and_turned(
    x: Tensor | Sequence[Tensor], flips: np.ndarray, turns: np.ndarray, axes: tuple[int, int] = (-2, -1)
) -> Iterator[Tensor]:
    """Yield the images after `mirror` and `turn`, each copied at most once; those that neither changes are views, not copies."""
    ndim = x[0].ndim + 1
    first, second = (a % ndim - 1 for a in axes)  # of one image [C, *spatial]
    square = x[0].shape[first] == x[0].shape[second]
    for image, mirrored, quarters in zip(x, flips.tolist(), turns.tolist(), strict=True):
        yield _oriented(image, mirrored, quarters, (first, second), square)


def _oriented(image: Tensor, mirrored: Sequence[bool], quarters: int, plane: tuple[int, int], square: bool) -> Tensor:
    """One image [C, *spatial]: all its mirrorings are one, after the axes were swapped without a copy."""
    first, second = plane
    mirrored = [False, *mirrored]
    if square and quarters % 2:
        image = image.transpose(first, second)
        mirrored[first], mirrored[second] = mirrored[second], mirrored[first]
    mirrored[first] ^= quarters in (1, 2)
    mirrored[second] ^= quarters in (2, 3)
    along = [axis for axis, yes in enumerate(mirrored) if yes]
    return image.flip(along) if along else image
