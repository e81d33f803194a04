"""Non-linear intensity transformation by random cubic Bezier curves.

Zhou et al., "Models Genesis" (Medical Image Analysis 2021, https://arxiv.org/abs/2004.07882).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_ssl.views import draws


def random_curves(batch: int, generator: torch.Generator, points: int = 1024) -> tuple[Tensor, Tensor]:
    """Random curves through (0, 0) and (1, 1) as tables x, y [batch, points], x ascending.

    Two control points are drawn uniformly from the unit square. With probability 0.5 the curve rises (x and y sorted),
    else it falls from (0, 1) to (1, 0) (x sorted, y as it comes from the curve's end).
    """
    control = draws.rand((batch, 4, 1), generator)
    falls = draws.rand((batch, 1), generator) < 0.5
    t = torch.linspace(0, 1, points, device=generator.device)
    first, second, last = 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3
    x = control[:, 0] * first + control[:, 2] * second + last
    y = control[:, 1] * first + control[:, 3] * second + last
    return x.sort(dim=1).values, torch.where(falls, y.flip(1), y.sort(dim=1).values)


def apply_curves(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Linear interpolation of the tables x, y [B, P] at values [B, N]; the tables' ends continue for ever."""
    right = torch.searchsorted(x.contiguous(), values.contiguous()).clamp(1, x.shape[1] - 1)
    left = right - 1
    x0, x1, y0, y1 = x.gather(1, left), x.gather(1, right), y.gather(1, left), y.gather(1, right)
    share = ((values - x0) / (x1 - x0).clamp(min=1e-12)).clamp(0, 1)
    return y0 + share * (y1 - y0)


def bezier_intensity(image: Tensor, low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Map an image [B, C, *spatial] through one random curve per sample, within its own range [low, high].

    low, high [B, C, 1, ...]. Values outside the range take the value at its ends.
    """
    x, y = random_curves(len(image), generator)
    width = high - low
    unit = ((image - low) / width.clamp(min=1e-12)).clamp(0, 1)
    return low + width * apply_curves(unit.flatten(1), x, y).view_as(image)
