"""Non-linear intensity transformation by random cubic Bezier curves.

Zhou et al., "Models Genesis" (Medical Image Analysis 2021, https://arxiv.org/abs/2004.07882).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.views import rng
from nnunet_ssl.views.host import to_device

CELLS = 2**16  # of the table that a voxel is looked up in; between its entries values are interpolated


def random_curves(batch: int, generator: torch.Generator, points: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Random curves through (0, 0) and (1, 1) as tables x, y [batch, points], x ascending.

    Two control points are drawn uniformly from the unit square. With probability 0.5 the curve rises (x and y sorted),
    else it falls from (0, 1) to (1, 0) (x sorted, y as it comes from the curve's end).
    """
    host = rng.Host(generator)
    control = host.rand(batch, 4, 1)
    falls = host.rand(batch, 1) < 0.5
    t = np.linspace(0, 1, points)
    first, second, last = 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3
    x = control[:, 0] * first + control[:, 2] * second + last
    y = control[:, 1] * first + control[:, 3] * second + last
    return np.sort(x, axis=1), np.where(falls, y[:, ::-1], np.sort(y, axis=1))


def apply_curve(values: Tensor, x: np.ndarray, y: np.ndarray) -> Tensor:
    """Linear interpolation of the table x, y [P] at values in [0, 1].

    The table is read off at even distances first, so that no voxel has to search it.
    """
    table = to_device(np.interp(np.linspace(0, 1, CELLS + 1), x, y).astype(np.float32), values.device)
    place = values.flatten() * CELLS
    left = place.int().clamp_(max=CELLS - 1)
    below, above = table[:-1].index_select(0, left), table[1:].index_select(0, left)
    return below.lerp_(above, place.sub_(left)).view_as(values)


def bezier_intensity(
    image: Tensor, low: Tensor, high: Tensor, generator: torch.Generator, probability: float = 1.0
) -> Tensor:
    """Map images [B, C, *spatial], each with `probability`, through one random curve per sample within its own range.

    low, high [B, C, 1, ...]: the range. Values outside of it take the value at its ends.
    """
    curves = random_curves(len(image), generator)
    chosen = rng.Host(generator).rand(len(image)) < probability
    out = image.clone()
    for row, x, y in zip(chosen.nonzero()[0].tolist(), *(table[chosen] for table in curves), strict=True):
        width = high[row] - low[row]
        unit = (image[row] - low[row]).div_(width.clamp(min=1e-12)).clamp_(0, 1)
        out[row] = apply_curve(unit, x, y).mul_(width).add_(low[row])
    return out
