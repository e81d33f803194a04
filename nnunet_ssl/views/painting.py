"""In- and out-painting: where boxes, or everything but boxes, give way to noise. True = hidden.

Zhou et al., "Models Genesis" (Medical Image Analysis 2021, https://arxiv.org/abs/2004.07882).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.views import rng

MARGIN = 3  # voxels between a box and the border of the patch, as far as there is room


def uniform_integers(low: np.ndarray, high: np.ndarray, host: rng.Host) -> np.ndarray:
    """Whole numbers drawn uniformly from low..high, both included, one per element."""
    drawn = host.rand(*low.shape)
    return low + np.minimum((drawn * (high - low + 1)).astype(np.int64), high - low)


def boxes_to_mask(
    starts: np.ndarray,
    widths: np.ndarray,
    active: np.ndarray,
    outside: np.ndarray,
    size: Sequence[int],
    device: torch.device,
) -> Tensor:
    """Union of boxes as a mask [B, 1, *size], or all but the boxes for images `outside` [B].

    starts, widths [B, N, axes] in voxels; inactive boxes [B, N] are left out.
    """
    mask = torch.empty(len(starts), 1, *size, dtype=torch.bool, device=device)
    for own, first, width, comes, rest in zip(mask[:, 0], starts, widths, active, outside.tolist(), strict=True):
        own.fill_(rest)
        for box in np.stack([first, first + width], axis=-1)[comes].tolist():
            own[tuple(slice(a, z) for a, z in box)] = not rest
    return mask


def random_painting(
    batch: int, size: Sequence[int], inner: float, boxes: int, another: float, generator: torch.Generator
) -> Tensor:
    """Masks [batch, 1, *size]: with probability `inner` up to `boxes` small boxes, else all but up to `boxes` large windows.

    Small boxes are a sixth to a third of the patch wide, windows three to four sevenths narrower than it. Every next box
    comes with probability `another`; the first window always comes.
    """
    host = rng.Host(generator)
    length = np.broadcast_to(np.array(tuple(size)), (batch, boxes, len(size)))
    is_inner = host.rand(batch, 1) < inner
    small = uniform_integers(length // 6, length // 3, host)
    large = length - uniform_integers(3 * length // 7, 4 * length // 7, host)
    widths = np.where(is_inner[..., None], small, large).clip(min=1)
    margin = ((length - widths) // 2).clip(max=MARGIN)
    starts = uniform_integers(margin, length - widths - margin, host)
    comes = host.rand(batch, boxes) < another
    comes[:, :1] |= ~is_inner
    active = np.logical_and.accumulate(comes, axis=1)
    return boxes_to_mask(starts, widths, active, ~is_inner[:, 0], size, generator.device)
