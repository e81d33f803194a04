"""Crops of a region by the integer position of their first voxel, and how much two crops share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.views import rng


def crop_within(size: int, lowest: float, highest: float) -> int:
    """Largest crop of an axis of `size` voxels between the shares `lowest` and `highest` of it that suits any stride.

    The crop is a multiple of the largest possible power of two that divides `size`: a patch that fits the network's
    stride is cut into crops that fit it too, without asking the network, whose stride is at most 32 or a quarter of the
    patch (nnU-Net's planner, the presets). An axis of one voxel stays as it is.
    """
    unit = min(size & -size, max(32, 1 << (size // 4).bit_length() - 1 if size >= 4 else 0))
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
) -> np.ndarray:
    """First voxels [batch, count, D] (int64) of crops that lie anywhere in the region with equal probability."""
    check_crop(crop, region)
    places = np.array([r - c + 1 for r, c in zip(region, crop, strict=True)])
    drawn = rng.Host(generator).rand(batch, count, len(region)) * places
    return np.minimum(drawn.astype(np.int64), places - 1)


def overlapping_corners(
    batch: int,
    count: int,
    region: Sequence[int],
    crop: Sequence[int],
    overlap: tuple[float, float],
    generator: torch.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """First voxels (first, second), [batch, count, D] each, of pairs of crops that share a given part of their volume.

    The shared part is drawn uniformly from `overlap` = (least, most) and spread over the axes at random. It is never
    less than drawn; it is more where the region has no room for the shift, or because voxels are whole.
    """
    check_crop(crop, region)
    host, shape = rng.Host(generator), (batch, count, len(region))
    size = np.array(crop)
    room = np.array(region) - size
    # In logarithms the shares of the axes add up. No axis may take more than its room or the whole crop allows.
    most = -np.log1p(-np.minimum(room, size - 1) / size)
    drawn = overlap[0] + host.rand(*shape[:2], 1) * (overlap[1] - overlap[0])
    wanted = -np.log(drawn.clip(min=1e-6))
    weight = host.exponential(*shape) * (room > 0)
    share = wanted * weight / weight.sum(-1, keepdims=True).clip(min=1e-12)
    for _ in range(len(region) - 1):  # what an axis cannot take goes to the others
        excess = (share - most).clip(min=0).sum(-1, keepdims=True)
        share = np.minimum(share, most)
        free = weight * (share < most)
        share = share + excess * free / free.sum(-1, keepdims=True).clip(min=1e-12)
    share = np.minimum(share, most)
    # The tiny addition, in voxels, keeps a shift of n that came out of the logarithms as 0.999 n from becoming n - 1.
    shift = np.minimum((size * -np.expm1(-share) + 1e-4).astype(np.int64), room)
    start = host.rand(*shape) * (room - shift + 1)
    start = np.minimum(start.astype(np.int64), room - shift)
    swap = host.rand(*shape) < 0.5
    return np.where(swap, start + shift, start), np.where(swap, start, start + shift)


def cut_views(image: Tensor, corners: np.ndarray, crop: Sequence[int]) -> Tensor:
    """Crops of images [B, C, *region] that start at the voxels `corners` [B, K, D], as one batch [K * B, C, *crop].

    It holds the first crops of all images, then the second ones, and so on.
    """
    crops = [_crops(i, c, crop) for i, c in zip(image, corners, strict=True)]
    return torch.stack([own[k] for k in range(corners.shape[1]) for own in crops])


def _crops(image: Tensor, corners: np.ndarray, crop: Sequence[int]) -> list[Tensor]:
    """Views of an image [C, *region], nothing copied."""
    places = [
        (slice(None), *(slice(a, a + s) for a, s in zip(corner, crop, strict=True))) for corner in corners.tolist()
    ]
    return [image[place] for place in places]


def shared_voxels(first: np.ndarray, second: np.ndarray, crop: Sequence[int]) -> np.ndarray:
    """Voxels that crops of equal size share; first voxels [..., D] that broadcast -> int64 [...]."""
    return (np.array(crop) - abs(first - second)).clip(min=0).prod(axis=-1)


def whole_crop(corners: Tensor, crop: Sequence[int]) -> Tensor:
    """The extent [..., D] of a crop for each of the corners [..., D], made where they are: nothing is copied from the host."""
    return torch.cat([torch.full_like(c, s) for c, s in zip(corners.split(1, dim=-1), crop, strict=True)], dim=-1)


def shared_box(own: Tensor, other: Tensor, crop: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What a crop shares with another, in its own voxels: (start, extent), [..., D] each, extent 0 where nothing."""
    size = whole_crop(own, crop)
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
    number = excluded.flatten(1).view(torch.uint8).sum(dim=1, dtype=torch.int32)  # of bools it takes ten times as long
    return 2 * number < excluded[0].numel()


def shared_fractions(corners: np.ndarray, grid: np.ndarray, crop: Sequence[int]) -> np.ndarray:
    """Part of each crop that lies in each cell of a grid of such crops: [B, T, D] and [K, D] -> float32 [B, T, K]."""
    voxels = prod(int(c) for c in crop)
    return (shared_voxels(corners[:, :, None], grid, crop) / voxels).astype(np.float32)
