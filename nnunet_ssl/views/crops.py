"""Crops of a region by the integer position of their first voxel, and how much two crops share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from nnunet_ssl.views import draws


def crop_within(size: int, lowest: float, highest: float) -> int:
    """Largest crop of an axis of `size` voxels between the shares `lowest` and `highest` of it that suits any stride.

    The crop is a multiple of the largest possible power of two that divides `size`: a patch that fits the network's
    stride is cut into crops that fit it too, without asking the network. An axis of one voxel stays as it is.
    """
    unit = size & -size
    while unit > 1 and (int(size * highest) // unit * unit) < max(size * lowest, 1):
        unit //= 2
    return max(int(size * highest) // unit * unit, 1)


def check_crop(crop: Sequence[int], region: Sequence[int]) -> None:
    """Raise ValueError when a crop does not lie in its region [voxels]."""
    if len(crop) != len(region) or any(c < 1 or c > r for c, r in zip(crop, region, strict=True)):
        raise ValueError(
            f"A crop of {tuple(crop)} voxels cannot be taken from a region of {tuple(region)}. "
            f"Set crop_size to {len(region)} numbers between 1 and {tuple(region)}."
        )


def random_corners(
    batch: int, count: int, region: Sequence[int], crop: Sequence[int], generator: torch.Generator
) -> Tensor:
    """First voxels [batch, count, D] (int64) of crops that lie anywhere in the region with equal probability."""
    check_crop(crop, region)
    device = generator.device
    places = torch.tensor([r - c + 1 for r, c in zip(region, crop, strict=True)], device=device)
    drawn = draws.rand((batch, count, len(region)), generator) * places
    return torch.minimum(drawn.long(), places - 1)


def overlapping_corners(
    batch: int,
    count: int,
    region: Sequence[int],
    crop: Sequence[int],
    overlap: tuple[float, float],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """First voxels (first, second), [batch, count, D] each, of pairs of crops that share a given part of their volume.

    The shared part is drawn uniformly from `overlap` = (least, most) and spread over the axes at random. It is never
    less than drawn; it is more where the region has no room for the shift, or because voxels are whole.
    """
    check_crop(crop, region)
    device, shape = generator.device, (batch, count, len(region))
    size = torch.tensor(crop, device=device, dtype=torch.float32)
    room = torch.tensor([r - c for r, c in zip(region, crop, strict=True)], device=device)
    # In logarithms the shares of the axes add up. No axis may take more than its room or the whole crop allows.
    most = -torch.log1p(-(room.clamp(max=size - 1) / size))
    drawn = overlap[0] + draws.rand((*shape[:2], 1), generator) * (overlap[1] - overlap[0])
    wanted = -drawn.clamp(min=1e-6).log()
    weight = draws.exponential(shape, generator) * (room > 0)
    share = wanted * weight / weight.sum(-1, keepdim=True).clamp(min=1e-12)
    for _ in range(len(region) - 1):  # what an axis cannot take goes to the others
        excess = (share - most).clamp(min=0).sum(-1, keepdim=True)
        share = torch.minimum(share, most)
        free = weight * (share < most)
        share = share + excess * free / free.sum(-1, keepdim=True).clamp(min=1e-12)
    share = torch.minimum(share, most)
    # The tiny addition, in voxels, keeps a shift of n that came out of the logarithms as 0.999 n from becoming n - 1.
    shift = torch.minimum((size * -torch.expm1(-share) + 1e-4).long(), room)
    start = draws.rand(shape, generator) * (room - shift + 1)
    start = torch.minimum(start.long(), room - shift)
    swap = draws.rand(shape, generator) < 0.5
    return torch.where(swap, start + shift, start), torch.where(swap, start, start + shift)


def cut_crops(image: Tensor, corners: Tensor, crop: Sequence[int]) -> Tensor:
    """Crops [B, K, C, *crop] of images [B, C, *region] that start at the voxels `corners` [B, K, D]."""
    windows = image
    for axis, size in enumerate(crop, start=2):
        windows = windows.unfold(axis, size, 1)  # a view: nothing is copied before the crops are picked
    sample = torch.arange(len(image), device=image.device).unsqueeze(1)
    index: Any = (sample, slice(None), *corners.unbind(-1))
    return windows[index]


def shared_voxels(first: Tensor, second: Tensor, crop: Sequence[int]) -> Tensor:
    """Voxels that crops of equal size share; first voxels [..., D] that broadcast -> int64 [...]."""
    size = torch.tensor(crop, device=first.device)
    return (size - (first - second).abs()).clamp(min=0).prod(dim=-1)


def shared_box(own: Tensor, other: Tensor, crop: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What a crop shares with another, in its own voxels: (start, extent), [..., D] each, extent 0 where nothing."""
    size = torch.tensor(crop, device=own.device)
    return (other - own).clamp(min=0), (size - (own - other).abs()).clamp(min=0)


def box_mask(start: Tensor, extent: Tensor, size: Sequence[int]) -> Tensor:
    """Bool mask [B, 1, *size], True inside the boxes that start at the voxels `start` [B, D] and have `extent` [B, D]."""
    mask = torch.ones(len(start), 1, *size, dtype=torch.bool, device=start.device)
    for axis, length in enumerate(size):
        voxel = torch.arange(length, device=start.device)
        inside = (voxel >= start[:, axis, None]) & (voxel < (start + extent)[:, axis, None])
        mask &= inside.view(len(start), 1, *(length if a == axis else 1 for a in range(len(size))))
    return mask


def mostly_usable(excluded: Tensor) -> Tensor:
    """Whether less than half of the voxels of a crop are excluded: bool [N, 1, *crop] -> bool [N]."""
    return excluded.flatten(1).float().mean(dim=1) < 0.5


def shared_fractions(corners: Tensor, grid: Tensor, crop: Sequence[int]) -> Tensor:
    """Part of each crop that lies in each cell of a grid of such crops: [B, T, D] and [K, D] -> [B, T, K]."""
    voxels = prod(int(c) for c in crop)
    return shared_voxels(corners.unsqueeze(2), grid, crop).float() / voxels
