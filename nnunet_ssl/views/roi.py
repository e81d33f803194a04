"""Features of a box of an image, pooled on a fixed grid (RoIAlign for boxes in voxels)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d, avg_pool2d, avg_pool3d, grid_sample

SAMPLES = 2  # per axis and cell of the grid, as in the RoIAlign of Mask R-CNN


def coarsen(features: Tensor, size: Sequence[int]) -> Tensor:
    """Average-pool a feature map [N, C, *spatial] to at most `size`, in float32."""
    target: Any = tuple(min(s, f) for s, f in zip(size, features.shape[2:], strict=True))
    pool: Any = adaptive_avg_pool3d if features.ndim == 5 else adaptive_avg_pool2d
    return pool(features, target).float()


def pool_boxes(features: Tensor, start: Tensor, extent: Tensor, image: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Features [N, C, *grid] of boxes that start at the voxels `start` [N, D] of images of size `image`, `extent` long.

    features: [N, C, *spatial], whatever their resolution. Every cell of the grid is the mean of 2^D linearly
    interpolated samples; beyond the border the outermost features count.
    """
    ndim, device = len(image), features.device
    axes = [(torch.arange(g * SAMPLES, device=device) + 0.5) / (g * SAMPLES) for g in grid]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # [*fine, D] in [0, 1] within the box
    shape = (len(start), *(1,) * ndim, ndim)
    voxel = start.view(shape) + place * extent.view(shape)
    # grid_sample counts from -1 to 1 between the outer borders, last axis first.
    where = [2 * voxel[..., axis] / image[axis] - 1 for axis in reversed(range(ndim))]
    sampled = grid_sample(
        features.float(), torch.stack(where, dim=-1), mode="bilinear", padding_mode="border", align_corners=False
    )
    return avg_pool3d(sampled, SAMPLES) if ndim == 3 else avg_pool2d(sampled, SAMPLES)
