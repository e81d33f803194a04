"""Random boxes that are cut out of a batch until a drawn share of each image is gone."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.views import rng
from nnunet_ssl.views.host import to_device


def random_boxes(
    batch: int, size: Sequence[int], count: int, extent: tuple[float, float], generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(first voxel, voxel after the last), [batch, count, D] each, of boxes that may end at the border of the image.

    extent: shortest and longest edge as shares of the axis, rounded down to voxels but never to none. The first voxel
    lies anywhere that leaves room for the shortest edge, so boxes at the border are cut short.
    """
    host, length = rng.Host(generator), np.array(size)
    shortest = (length * extent[0]).astype(np.int64).clip(min=1)
    longest = np.maximum((length * extent[1]).astype(np.int64), shortest)

    def draw(choices: np.ndarray) -> np.ndarray:
        drawn = host.rand(batch, count, len(size)) * choices
        return np.minimum(drawn.astype(np.int64), choices - 1)

    start = draw(length - shortest + 1)
    return start, np.minimum(start + shortest + draw(longest - shortest + 1), length)


def first_boxes(start: np.ndarray, stop: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Bool [B, K]: the boxes needed, in their order, until their volumes add up to at least `voxels` [B]."""
    volume = (stop - start).prod(axis=-1)
    return volume.cumsum(axis=1) - volume < voxels[:, None]


def union_of_boxes(
    start: np.ndarray, stop: np.ndarray, used: np.ndarray, size: Sequence[int], device: torch.device
) -> Tensor:
    """Bool mask [B, 1, *size], True inside the boxes [B, K, D] that are `used` [B, K]."""
    if device.type == "cpu":
        return fill_boxes(start, stop, used, size)
    masks = [multiply_edges(a[u], z[u], size, device) for a, z, u in zip(start, stop, used, strict=True)]
    return torch.stack(masks).unsqueeze(1)


def fill_boxes(start: np.ndarray, stop: np.ndarray, used: np.ndarray, size: Sequence[int]) -> Tensor:
    """Mask [B, 1, *size] on the host, into which the boxes are written one by one."""
    mask = np.zeros((len(start), 1, *size), dtype=bool)
    for own, a, z, u in zip(mask[:, 0], start, stop, used, strict=True):
        for box in np.stack([a[u], z[u]], axis=-1).tolist():
            own[tuple(slice(*edge) for edge in box)] = True
    return torch.from_numpy(mask)


def multiply_edges(start: np.ndarray, stop: np.ndarray, size: Sequence[int], device: torch.device) -> Tensor:
    """Mask [*size] of the boxes [K, D] of an image, from how many of them cover a voxel.

    That is a product of matrices: a GPU is done with it before it could be given hundreds of boxes to fill.
    """
    edges = []
    for axis, length in enumerate(size):
        voxel = np.arange(length)
        inside = (voxel >= start[:, axis, None]) & (voxel < stop[:, axis, None])
        edges.append(to_device(inside.astype(np.float32), device))
    before = edges[0]
    for edge in edges[1:-1]:
        before = (before.unsqueeze(2) * edge.unsqueeze(1)).flatten(1)
    return (before.T @ edges[-1] > 0.5).view(*size)


def random_cutout(
    batch: int,
    size: Sequence[int],
    max_share: float,
    extent: tuple[float, float],
    generator: torch.Generator,
    kept: np.ndarray | None = None,
) -> Tensor:
    """Random masks [batch, 1, *size], True where cut out.

    Boxes are added until their summed (not joint) volume reaches a share of the image drawn from U(0, max_share).
    kept: bool [batch], the images that are left whole.
    """
    mean = [max(s * (extent[0] + extent[1]) / 2, 1) / s * 0.9 for s in size]  # 0.9: cut short at the border
    count = max(ceil(1.4 * max_share / prod(mean)), 4)  # 1.4: three standard deviations more than needed
    start, stop = random_boxes(batch, size, count, extent, generator)
    share = rng.Host(generator).rand(batch) * max_share
    used = first_boxes(start, stop, share * prod(size))
    if kept is not None:
        used &= ~kept[:, None]
    return union_of_boxes(start, stop, used, size, generator.device)
