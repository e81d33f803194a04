"""Local pixel shuffling: permute the voxels within small boxes.

Zhou et al., "Models Genesis" (Medical Image Analysis 2021, https://arxiv.org/abs/2004.07882).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.views import rng
from nnunet_ssl.views.host import to_device


def random_starts(batch: int, length: int, max_width: int, generator: torch.Generator) -> np.ndarray:
    """Cut an axis of `length` voxels at random: for every voxel [batch, length] where its piece begins.

    Pieces are 1 to `max_width` voxels wide, uniformly; the first and the last piece are cut by the patch.
    """
    host = rng.Host(generator)
    widths = host.randint(1, max_width + 1, batch, length + max_width)
    offset = host.randint(0, max_width, batch, 1)
    edges = np.concatenate([np.zeros_like(offset), widths.cumsum(axis=1)], axis=1) - offset
    pieces = (np.searchsorted(own, np.arange(length), side="right") - 1 for own in edges)
    return np.stack([own[piece] for own, piece in zip(edges, pieces, strict=True)]).clip(min=0)


def random_cuts(
    batch: int, size: Sequence[int], max_width: Sequence[int], generator: torch.Generator
) -> list[np.ndarray]:
    """Tile the patch by random boxes: for every axis the `random_starts` of its voxels, [batch, length] each."""
    return [random_starts(batch, n, w, generator) for n, w in zip(size, max_width, strict=True)]


def _grid(along: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Numbers along each axis [length], shaped to broadcast over the patch."""
    return [
        to_device(own.astype(np.int64), device).view(*(-1 if a == axis else 1 for a in range(len(along))))
        for axis, own in enumerate(along)
    ]


def box_corners(starts: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """For every voxel [prod(size)] the flat index of its box's first corner; starts [length] per axis."""
    size = [len(own) for own in starts]
    corner = torch.zeros((), dtype=torch.int64, device=device)
    for part in _grid([own * prod(size[axis + 1 :]) for axis, own in enumerate(starts)], device):
        corner = corner + part
    return corner.flatten()


def places_by_box(starts: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """For every voxel [prod(size)] its place in a list of the patch box by box, in the order of their corners.

    The boxes are a grid of unequal cells: those before a box in the list fill whole slabs, then whole rows of its own
    slab, and so on. Nothing has to be sorted.
    """
    size = [len(own) for own in starts]
    wide = [np.unique(own, return_inverse=True, return_counts=True)[1:] for own in starts]
    widths = _grid([counts[piece] for piece, counts in wide], device)
    before = _grid([own * prod(size[axis + 1 :]) for axis, own in enumerate(starts)], device)
    within = _grid([np.arange(n) - own for own, n in zip(starts, size, strict=True)], device)
    one = torch.ones((), dtype=torch.int64, device=device)
    place, slab, row = one - 1, one, one
    for width, earlier in zip(widths, before, strict=True):
        place, slab = place + slab * earlier, slab * width
    for width, offset in zip(reversed(widths), reversed(within), strict=True):
        place, row = place + row * offset, row * width
    return place.flatten()


def local_shuffle(image: Tensor, max_width: Sequence[int], share: np.ndarray, generator: torch.Generator) -> Tensor:
    """Permute the voxels of an image [B, C, *spatial] within random boxes, all channels alike.

    Boxes are up to `max_width` voxels wide per axis and tile the patch; each is shuffled with probability
    `share` [B]. The values of a box stay in it, so its histogram is unchanged.
    """
    batch, _, *size = image.shape
    starts = random_cuts(batch, size, max_width, generator)
    rows = share.nonzero()[0].tolist()
    draw = rng.rand((batch, prod(size)), generator, rows)
    key = rng.randint(0, 2**24, (batch, prod(size)), generator, rows)
    out = image.clone()
    for number, row in enumerate(rows):
        own = [axis[row] for axis in starts]
        corner = box_corners(own, image.device)
        chosen = draw[number].index_select(0, corner) < float(share[row])
        # The list of the patch box by box, in which the voxels of a box come randomly. One row at a time: along an axis
        # of a matrix, a CPU sorts four times as slowly.
        source = (corner * 2**24).add_(key[number] * chosen).argsort(stable=True)
        source = source.index_select(0, places_by_box(own, image.device))
        out[row] = image[row].flatten(1).index_select(1, source).view(image.shape[1:])
    return out
