"""Flips of batched tensors, drawn per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_ssl.views import draws


def random_flips(batch: int, ndim: int, probability: float, generator: torch.Generator) -> Tensor:
    """Which axes to flip, bool [batch, ndim]: up to three flips of random axes, each next one with `probability`.

    An axis that is drawn twice is back where it was. Models Genesis (https://arxiv.org/abs/2004.07882) takes 0.4.
    """
    device = generator.device
    comes = (draws.rand((batch, 3), generator) < probability).int().cumprod(dim=1)
    axes = draws.randint(0, ndim, (batch, 3), generator)
    times = torch.zeros(batch, ndim, dtype=comes.dtype, device=device).scatter_add_(1, axes, comes)
    return times % 2 == 1


def flip(x: Tensor, flips: Tensor) -> Tensor:
    """Flip the spatial axes of a tensor [B, C, *spatial] where `flips` [B, ndim] says so."""
    for axis in range(x.ndim - 2):
        x = torch.where(flips[:, axis].view(-1, *(1,) * (x.ndim - 1)), x.flip(axis + 2), x)
    return x
