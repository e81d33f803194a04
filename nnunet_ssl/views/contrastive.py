"""The augmentation of nnssl's contrastive methods: every crop gets its own intensities and its own orientation."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_ssl.views import rng
from nnunet_ssl.views.intensity import augment_intensity
from nnunet_ssl.views.orientation import mirrored_and_turned


def augment_crops(x: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Randomly changed copies of crops [N, C, *crop].

    Intensities as in `augment_intensity`; every axis mirrored with p = 0.5; one to three quarter turns in the plane of
    the first two axes with p = 0.3. `strength` multiplies the probabilities; 0 changes nothing.
    """
    x = augment_intensity(x, generator, strength)
    host, number, ndim = rng.Host(generator), len(x), x.ndim - 2
    flips = host.rand(number, ndim) < min(0.5 * strength, 0.5)
    turned = host.rand(number) < 0.3 * strength
    quarters = host.randint(1, 4, number)
    for own, changed in zip(x, mirrored_and_turned(x, flips, quarters * turned, axes=(2, 3)), strict=True):
        own.copy_(changed.contiguous())  # swapped axes may still share the memory of the crop itself
    return x
