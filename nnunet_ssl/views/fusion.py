"""Fusion of two images in boxes: which level of fusion each voxel has, and the fused image.

Wang et al., "MIS-FM" (2023, https://arxiv.org/abs/2306.16925).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_ssl.views import draws
from nnunet_ssl.views.painting import uniform_integers

BITS = 24  # of an integer that float32 holds exactly


def last_box(starts: Tensor, widths: Tensor, active: Tensor, size: Sequence[int]) -> Tensor:
    """Which of the boxes painted over each other ends up on top: int32 [B, *size], n + 1 for box n and 0 for none.

    starts, widths [B, N, axes] in voxels; inactive boxes [B, N] are left out. The boxes around a voxel are the
    bits of an integer, so memory does not grow with their number.
    """
    batch, number = active.shape
    last = torch.zeros(batch, *size, dtype=torch.int32, device=starts.device)
    for first in range(0, number, BITS):
        chunk = slice(first, first + BITS)
        bit = 2 ** torch.arange(len(range(number)[chunk]), device=starts.device).view(-1, 1)
        covering = torch.full_like(last, -1)  # all bits
        for axis, length in enumerate(size):
            position = torch.arange(length, device=starts.device)
            start, width = starts[:, chunk, axis, None], widths[:, chunk, axis, None]
            inside = (position >= start) & (position < start + width) & active[:, chunk, None]
            bits = (inside * bit).sum(dim=1).int()
            covering &= bits.view(batch, *(length if a == axis else 1 for a in range(len(size))))
        highest = covering.float().frexp().exponent  # one more than the highest bit, 0 where there is none
        last = torch.where(highest > 0, highest + first, last)
    return last


def random_boxes(
    shape: tuple[int, int], size: Sequence[int], narrowest: int, widest: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(starts, widths) [*shape, axes] of boxes anywhere inside `size` voxels.

    Every width is drawn uniformly from `narrowest` voxels, but at most an eighth of the axis, to `widest` times the axis.
    """
    length = torch.tensor(tuple(size), device=generator.device).expand(*shape, len(size))
    low = (length // 8).clamp(min=1, max=narrowest)
    widths = uniform_integers(low, (length * widest).long().maximum(low), generator)
    return uniform_integers(torch.zeros_like(length), length - widths, generator), widths


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
    device, (fewest, most) = generator.device, boxes
    starts, widths = random_boxes((batch, most), size, narrowest, widest, generator)
    number = draws.randint(fewest, most + 1, (batch, 1), generator)
    colours = draws.randint(0, levels, (batch, most + 1), generator)
    colours[:, 0] = 0  # of voxels without a box
    last = last_box(starts, widths, torch.arange(most, device=device) < number, size)
    return colours.gather(1, last.flatten(1).long()).view(batch, 1, *size)


def fuse(foreground: Tensor, background: Tensor, level: Tensor, levels: int) -> Tensor:
    """Images [B, C, *spatial] mixed voxel by voxel, from all background at level 0 to all foreground at the highest.

    level: whole numbers 0..levels-1 [B, 1, *spatial].
    """
    return torch.lerp(background, foreground, level.to(background.dtype) / (levels - 1))
