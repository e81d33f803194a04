"""Flips of batched tensors, drawn per sample."""

from __future__ import annotations

import numpy as np
import torch

from nnunet_ssl.views import rng


def random_flips(batch: int, ndim: int, probability: float, generator: torch.Generator) -> np.ndarray:
    """Which axes to flip, bool [batch, ndim]: up to three flips of random axes, each next one with `probability`.

    An axis that is drawn twice is back where it was. Models Genesis (https://arxiv.org/abs/2004.07882) takes 0.4.
    """
    host = rng.Host(generator)
    comes = (host.rand(batch, 3) < probability).cumprod(axis=1)
    axes = host.randint(0, ndim, batch, 3)
    times = (comes[..., None] * (axes[..., None] == np.arange(ndim))).sum(axis=1)
    return times % 2 == 1
