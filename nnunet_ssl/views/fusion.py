"""Fusion of two images in boxes: which level of fusion each voxel has, and the fused image.

Wang et al., "MIS-FM" (2023, https://arxiv.org/abs/2306.16925).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.views import rng
from nnunet_ssl.views.painting import uniform_integers


def random_boxes(
    shape: tuple[int, int], size: Sequence[int], narrowest: int, widest: float, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(starts, widths) [*shape, axes] of boxes anywhere inside `size` voxels.

    Every width is drawn uniformly from `narrowest` voxels, but at most an eighth of the axis, to `widest` times the axis.
    """
    host = rng.Host(generator)
    length = np.broadcast_to(np.array(tuple(size)), (*shape, len(size)))
    low = (length // 8).clip(min=1, max=narrowest)
    widths = uniform_integers(low, np.maximum((length * widest).astype(np.int64), low), host)
    return uniform_integers(np.zeros_like(length), length - widths, host), widths


def paint_boxes(
    starts: np.ndarray, widths: np.ndarray, values: Sequence[Sequence[int]], size: Sequence[int], device: torch.device
) -> Tensor:
    """Boxes painted over each other: int64 [B, 1, *size], each box with its value, 0 where there is none.

    starts, widths [B, N, axes] in voxels; values: of the first boxes of each image, which are those that are painted.
    """
    painted = torch.zeros(len(starts), 1, *size, dtype=torch.int64, device=device)
    for image, own, first, width in zip(painted[:, 0], values, starts, widths, strict=True):
        for value, box in zip(own, np.stack([first, first + width], axis=-1).tolist(), strict=False):
            image[tuple(slice(a, z) for a, z in box)] = value
    return painted


def random_levels(
    batch: int,
    size: Sequence[int],
    levels: int,
    boxes: tuple[int, int],
    narrowest: int,
    widest: float,
    generator: torch.Generator,
) -> Tensor:
    """Levels of fusion int64 [batch, 1, *size]: random boxes of random levels, each over the ones before, in level 0.

    boxes: fewest and most per image; box sizes as in `random_boxes`.
    """
    host, (fewest, most) = rng.Host(generator), boxes
    starts, widths = random_boxes((batch, most), size, narrowest, widest, generator)
    number = host.randint(fewest, most + 1, batch, 1)[:, 0]
    colours = host.randint(0, levels, batch, most + 1)[:, 1:]
    values = [own[:n].tolist() for own, n in zip(colours, number, strict=True)]
    return paint_boxes(starts, widths, values, size, generator.device)


def fuse(foreground: Tensor, background: Tensor, level: Tensor, levels: int) -> Tensor:
    """Images [B, C, *spatial] mixed voxel by voxel, from all background at level 0 to all foreground at the highest.

    level: whole numbers 0..levels-1 [B, 1, *spatial].
    """
    return torch.lerp(background, foreground, level.to(background.dtype) / (levels - 1))
