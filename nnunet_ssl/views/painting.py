"""In- and out-painting: where boxes, or everything but boxes, give way to noise. True = hidden.

Zhou et al., "Models Genesis" (Medical Image Analysis 2021, https://arxiv.org/abs/2004.07882).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_ssl.views import draws

MARGIN = 3  # voxels between a box and the border of the patch, as far as there is room


def uniform_integers(low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Whole numbers drawn uniformly from low..high, both included, one per element."""
    drawn = draws.rand(low.shape, generator)
    return low + (drawn * (high - low + 1)).long().minimum(high - low)


def boxes_to_mask(starts: Tensor, widths: Tensor, active: Tensor, size: Sequence[int]) -> Tensor:
    """Union of boxes as a mask [B, 1, *size]; starts, widths [B, N, axes] in voxels, inactive boxes [B, N] left out."""
    batch, number = active.shape
    inside = active.view(batch, number, *(1,) * len(size))
    for axis, length in enumerate(size):
        position = torch.arange(length, device=starts.device)
        first, width = starts[..., axis, None], widths[..., axis, None]
        covered = (position >= first) & (position < first + width)
        inside = inside & covered.view(batch, number, *(length if a == axis else 1 for a in range(len(size))))
    return inside.any(dim=1, keepdim=True)


def random_painting(
    batch: int, size: Sequence[int], inner: float, boxes: int, another: float, generator: torch.Generator
) -> Tensor:
    """Masks [batch, 1, *size]: with probability `inner` up to `boxes` small boxes, else all but up to `boxes` large windows.

    Small boxes are a sixth to a third of the patch wide, windows three to four sevenths narrower than it. Every next box
    comes with probability `another`; the first window always comes.
    """
    device = generator.device
    length = torch.tensor(tuple(size), device=device).expand(batch, boxes, len(size))
    is_inner = draws.rand((batch, 1), generator) < inner
    small = uniform_integers(length // 6, length // 3, generator)
    large = length - uniform_integers(3 * length // 7, 4 * length // 7, generator)
    widths = torch.where(is_inner[..., None], small, large).clamp(min=1)
    margin = ((length - widths) // 2).clamp(max=MARGIN)
    starts = uniform_integers(margin, length - widths - margin, generator)
    comes = draws.rand((batch, boxes), generator) < another
    comes[:, :1] |= ~is_inner
    mask = boxes_to_mask(starts, widths, comes.int().cumprod(dim=1).bool(), size)
    return mask ^ ~is_inner.view(batch, 1, *(1,) * len(size))
