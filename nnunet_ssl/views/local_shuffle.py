"""Local pixel shuffling: permute the voxels within small boxes.

Zhou et al., "Models Genesis" (Medical Image Analysis 2021, https://arxiv.org/abs/2004.07882).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from nnunet_ssl.views import draws


def random_starts(batch: int, length: int, max_width: int, generator: torch.Generator) -> Tensor:
    """Cut an axis of `length` voxels at random: for every voxel [batch, length] where its piece begins.

    Pieces are 1 to `max_width` voxels wide, uniformly; the first and the last piece are cut by the patch.
    """
    widths = draws.randint(1, max_width + 1, (batch, length + max_width), generator)
    offset = draws.randint(0, max_width, (batch, 1), generator)
    edges = torch.cat([torch.zeros_like(offset), widths.cumsum(dim=1)], dim=1) - offset
    positions = torch.arange(length, device=generator.device).expand(batch, length).contiguous()
    piece = torch.searchsorted(edges, positions, right=True) - 1
    return edges.gather(1, piece).clamp(min=0)


def random_boxes(batch: int, size: Sequence[int], max_width: Sequence[int], generator: torch.Generator) -> Tensor:
    """Tile the patch by random boxes: for every voxel [batch, prod(size)] the flat index of its box's first corner."""
    corner = torch.zeros(batch, *(1,) * len(size), dtype=torch.long, device=generator.device)
    for axis, (length, width) in enumerate(zip(size, max_width, strict=True)):
        starts = random_starts(batch, length, width, generator) * prod(size[axis + 1 :])
        corner = corner + starts.view(batch, *(length if a == axis else 1 for a in range(len(size))))
    return corner.flatten(1)


def local_shuffle(image: Tensor, max_width: Sequence[int], share: Tensor, generator: torch.Generator) -> Tensor:
    """Permute the voxels of an image [B, C, *spatial] within random boxes, all channels alike.

    Boxes are up to `max_width` voxels wide per axis and tile the patch; each is shuffled with probability
    `share` [B]. The values of a box stay in it, so its histogram is unchanged.
    """
    batch, channels, *size = image.shape
    corner = random_boxes(batch, size, max_width, generator)
    chosen = draws.rand(corner.shape, generator).gather(1, corner) < share[:, None]
    key = draws.randint(0, 2**24, corner.shape, generator)
    # Two orders that list the same box at the same places: in the one its voxels come as they lie, in the other randomly.
    place = corner.argsort(dim=1, stable=True)
    source = (corner * 2**24 + key * chosen).argsort(dim=1, stable=True)
    values = image.flatten(2)
    moved = values.gather(2, source.unsqueeze(1).expand(-1, channels, -1))
    return torch.empty_like(values).scatter_(2, place.unsqueeze(1).expand(-1, channels, -1), moved).view_as(image)
