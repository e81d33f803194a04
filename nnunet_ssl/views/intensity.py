"""nnU-Net's intensity augmentation, batched on the device: noise, blur, brightness, contrast, resolution, gamma.

Equal in distribution to batchgenerators' transforms with the parameters of nnssl's contrastive methods. One difference:
the resolution is restored by cubic convolution (Keys 1981), not by cubic splines. All functions take single-channel
images [M, *spatial] and one parameter per image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nnunet_ssl.views import draws

BLUR_SIGMA = (0.5, 1.0)  # voxels
FACTOR = (0.75, 1.25)  # brightness and contrast
ZOOM = (0.5, 1.0)
GAMMA = (0.7, 1.5)
NOISE_SIGMA = (0.0, 0.1)  # batchgenerators calls it variance and uses it as standard deviation


def _column(parameter: Tensor, ndim: int) -> Tensor:
    return parameter.view(-1, *(1,) * (ndim - 1))


def _extent(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every image, shaped to broadcast."""
    lowest, highest = torch.aminmax(x.flatten(1), dim=1)
    return _column(lowest, x.ndim), _column(highest, x.ndim)


def _mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    std, mean = torch.std_mean(x.flatten(1), dim=1, correction=0)
    return _column(mean, x.ndim), _column(std, x.ndim)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur as scipy.ndimage.gaussian_filter: cut off after 4 sigma, mirrored at the border, sigma <= 1 voxel."""
    reach = int(4 * BLUR_SIGMA[1] + 0.5)
    offset = torch.arange(-reach, reach + 1, device=x.device)
    weight = torch.exp(-0.5 * (offset / sigma.unsqueeze(1)).square())
    weight = weight * (offset.abs() <= (4 * sigma.unsqueeze(1) + 0.5).floor())
    weight = weight / weight.sum(dim=1, keepdim=True)
    for axis in range(1, x.ndim):
        length = x.shape[axis]
        index = torch.arange(-reach, length + reach, device=x.device) % (2 * length)
        padded = x.index_select(axis, torch.where(index < length, index, 2 * length - 1 - index))
        x = torch.zeros_like(x)
        for tap in range(2 * reach + 1):
            x.addcmul_(_column(weight[:, tap], x.ndim), padded.narrow(axis, tap, length))
    return x


def change_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Stretch the values around their mean, clipped to the range they had."""
    mean = _column(x.flatten(1).mean(dim=1), x.ndim)
    return torch.clamp((x - mean) * _column(factor, x.ndim) + mean, *_extent(x))


def _resampling(length: int, zoom: Tensor) -> Tensor:
    """Matrices [M, length, length]: nearest voxels of a coarser axis, and back by cubic convolution."""
    coarse = (length * zoom).round().clamp(min=1).view(-1, 1, 1)
    voxel = torch.arange(length, device=zoom.device).view(1, -1, 1)
    position = (voxel + 0.5) * coarse / length - 0.5
    tap = position.floor() + torch.arange(-1, 3, device=zoom.device)
    d = (position - tap).abs()
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weight = torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
    source = torch.minimum(tap.clamp(min=0), coarse - 1)
    source = ((source + 0.5) * length / coarse).floor().long().clamp(max=length - 1)
    matrix = torch.zeros(len(zoom), length, length, device=zoom.device)
    return matrix.scatter_add_(2, source, weight)


def lower_resolution(x: Tensor, zoom: Tensor) -> Tensor:
    """Sample every axis down to `zoom` [M] of its length and back up, clipped to the range the values had."""
    lowest, highest = _extent(x)
    for axis in range(1, x.ndim):
        moved = x.movedim(axis, -1)
        resampled = moved.flatten(1, -2) @ _resampling(moved.shape[-1], zoom).transpose(1, 2)
        x = resampled.view(moved.shape).movedim(-1, axis)
    return torch.clamp(x, lowest, highest)


def change_gamma(x: Tensor, gamma: Tensor, invert: bool) -> Tensor:
    """Gamma correction of the values scaled to [0, 1], or of the inverted ones; mean and deviation stay."""
    x = -x if invert else x
    mean, std = _mean_and_std(x)
    lowest, highest = _extent(x)
    width = highest - lowest + 1e-7
    changed = ((x - lowest) / width).pow(_column(gamma, x.ndim)) * width + lowest
    new_mean, new_std = _mean_and_std(changed)
    changed = (changed - new_mean) / (new_std + 1e-8) * std + mean
    return -changed if invert else changed


def augment_intensity(
    x: Tensor, generator: torch.Generator, strength: float = 1.0, low_resolution: float = 0.1
) -> Tensor:
    """Randomly changed copies of images [N, C, *spatial].

    Every image has each change with nnssl's probability times `strength` (0 changes nothing); channels are changed
    independently, with noise of the same strength. low_resolution: probability that the resolution of an image is
    lowered, then of half of its channels; 0.1 in nnssl's contrastive methods, 0.25 in its VolumeFusion.
    """
    number, channels = x.shape[:2]
    out = x.clone(memory_format=torch.contiguous_format)
    flat = out.view(number * channels, *x.shape[2:])

    def rand(*shape: int) -> Tensor:
        return draws.rand(shape, generator)

    def uniform(each: int, bounds: tuple[float, float]) -> Tensor:
        """Parameters [N * each]."""
        return bounds[0] + rand(number, each).flatten() * (bounds[1] - bounds[0])

    def two_sided(each: int, bounds: tuple[float, float]) -> Tensor:
        """Half of the parameters below 1, half above."""
        below, above = uniform(each, (bounds[0], 1)), uniform(each, (1, bounds[1]))
        return torch.where(rand(number, each).flatten() < 0.5, below, above)

    def apply(change: Callable[[Tensor, Tensor], Tensor], parameter: Tensor, p: float, p_channel: float = 1.0) -> None:
        """Change a random part of the images; `parameter` has a value for each of all."""
        picked = (rand(number, 1) < p * strength) & (rand(number, channels) < p_channel)
        rows = picked.flatten().nonzero().squeeze(1)
        if len(rows):
            flat[rows] = change(flat[rows], parameter[rows])

    # Few rows get noise, and which ones is random: it comes from a key of each row, not from the common generator.
    keys, sigma = draws.randint(0, 2**31, (number, channels), generator).flatten(), uniform(1, NOISE_SIGMA)
    sigma = sigma.repeat_interleave(channels)

    def add_noise(rows: Tensor, row: Tensor) -> Tensor:
        return rows + draws.noise(keys[row], rows.shape[1:]).to(x.dtype) * _column(sigma[row], rows.ndim)

    apply(add_noise, torch.arange(number * channels, device=x.device), 0.1)
    apply(blur, uniform(channels, BLUR_SIGMA), 0.2, 0.5)
    apply(lambda rows, factor: rows * _column(factor, rows.ndim), uniform(channels, FACTOR), 0.15)
    apply(change_contrast, two_sided(channels, FACTOR), 0.15)
    apply(lower_resolution, uniform(channels, ZOOM), low_resolution, 0.5)
    apply(partial(change_gamma, invert=True), two_sided(channels, GAMMA), 0.1)
    apply(partial(change_gamma, invert=False), two_sided(channels, GAMMA), 0.3)
    return out
