"""Random boxes that are cut out of a batch until a drawn share of each image is gone."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

import torch
from torch import Tensor

from nnunet_ssl.views import draws


def random_boxes(
    batch: int, size: Sequence[int], count: int, extent: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(first voxel, voxel after the last), [batch, count, D] each, of boxes that may end at the border of the image.

    extent: shortest and longest edge as shares of the axis, rounded down to voxels but never to none. The first voxel
    lies anywhere that leaves room for the shortest edge, so boxes at the border are cut short.
    """
    device = generator.device
    length = torch.tensor(size, device=device)
    shortest = (length * extent[0]).long().clamp(min=1)
    longest = torch.maximum((length * extent[1]).long(), shortest)

    def draw(choices: Tensor) -> Tensor:
        drawn = draws.rand((batch, count, len(size)), generator) * choices
        return torch.minimum(drawn.long(), choices - 1)

    start = draw(length - shortest + 1)
    return start, torch.minimum(start + shortest + draw(longest - shortest + 1), length)


def first_boxes(start: Tensor, stop: Tensor, voxels: Tensor) -> Tensor:
    """Bool [B, K]: the boxes needed, in their order, until their volumes add up to at least `voxels` [B]."""
    volume = (stop - start).prod(dim=-1)
    return volume.cumsum(dim=1) - volume < voxels.unsqueeze(1)


def union_of_boxes(start: Tensor, stop: Tensor, used: Tensor, size: Sequence[int]) -> Tensor:
    """Bool mask [B, 1, *size], True inside the boxes [B, K, D] that are `used` [B, K]."""
    edges = []
    for axis, length in enumerate(size):
        voxel = torch.arange(length, device=start.device)
        inside = (voxel >= start[..., axis, None]) & (voxel < stop[..., axis, None])
        edges.append((inside & used.unsqueeze(-1)).float())
    letters = "xyz"[: len(size)]
    covered = torch.einsum(f"{','.join(f'bk{a}' for a in letters)}->b{letters}", *edges)
    return (covered > 0.5).unsqueeze(1)


def random_cutout(
    batch: int,
    size: Sequence[int],
    max_share: float,
    extent: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Random masks [batch, 1, *size], True where cut out.

    Boxes are added until their summed (not joint) volume reaches a share of the image drawn from U(0, max_share).
    """
    mean = [max(s * (extent[0] + extent[1]) / 2, 1) / s * 0.9 for s in size]  # 0.9: cut short at the border
    count = max(ceil(1.4 * max_share / prod(mean)), 4)  # 1.4: three standard deviations more than needed
    start, stop = random_boxes(batch, size, count, extent, generator)
    share = draws.rand((batch,), generator) * max_share
    return union_of_boxes(start, stop, first_boxes(start, stop, share * prod(size)), size)
