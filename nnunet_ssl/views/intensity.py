"""nnU-Net's intensity augmentation, batched on the device: noise, blur, brightness, contrast, resolution, gamma.

Equal in distribution to batchgenerators' transforms with the parameters of nnssl's contrastive methods. One difference:
the resolution is restored by cubic convolution (Keys 1981), not by cubic splines. All functions take single-channel
images [M, *spatial] and one parameter per image, on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.views import rng
from nnunet_ssl.views.host import to_device

BLUR_SIGMA = (0.5, 1.0)  # voxels
FACTOR = (0.75, 1.25)  # brightness and contrast
ZOOM = (0.5, 1.0)
GAMMA = (0.7, 1.5)
NOISE_SIGMA = (0.0, 0.1)  # batchgenerators calls it variance and uses it as standard deviation


def _column(parameter: Tensor | np.ndarray, x: Tensor) -> Tensor:
    """One value per image, shaped to broadcast."""
    values = parameter if isinstance(parameter, Tensor) else to_device(parameter.astype(np.float32), x.device)
    return values.view(-1, *(1,) * (x.ndim - 1))


def _extent(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every image, shaped to broadcast."""
    flat = x.flatten(1)  # torch.aminmax takes twenty times as long along an axis
    return _column(flat.amin(dim=1), x), _column(flat.amax(dim=1), x)


def _centre(x: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean of every image in place; (mean, standard deviation), shaped to broadcast."""
    mean = _column(x.flatten(1).mean(dim=1), x)
    norm = torch.linalg.vector_norm(x.sub_(mean).flatten(1), dim=1)  # torch.std_mean takes twenty times as long
    return mean, _column(norm / x[0].numel() ** 0.5, x)


def _along_axes(x: Tensor, matrices: Callable[[int], np.ndarray]) -> Tensor:
    """Multiply every axis of the images by the matrices [M, length, length] of its length."""
    known: dict[int, Tensor] = {}
    for axis in range(1, x.ndim):
        length, shape = x.shape[axis], x.shape
        if length not in known:
            known[length] = to_device(matrices(length).astype(np.float32), x.device)
        if axis == x.ndim - 1:
            x = x.flatten(1, -2) @ known[length].transpose(1, 2)
        else:
            lines = x.reshape(len(x), -1, length, shape[axis + 1 :].numel())
            x = known[length].unsqueeze(1) @ lines
        x = x.view(shape)
    return x


def blur(x: Tensor, sigma: np.ndarray) -> Tensor:
    """Gaussian blur as scipy.ndimage.gaussian_filter: cut off after 4 sigma, mirrored at the border, sigma <= 1 voxel."""
    return _along_axes(x, partial(_smoothing, sigma=sigma))


def _smoothing(length: int, sigma: np.ndarray) -> np.ndarray:
    """Matrices [M, length, length]: every voxel is a weighted sum of those around it."""
    reach = int(4 * BLUR_SIGMA[1] + 0.5)
    offset = np.arange(-reach, reach + 1)
    sigma = sigma.astype(np.float64)[:, None]
    weight = np.exp(-0.5 * (offset / sigma) ** 2) * (abs(offset) <= np.floor(4 * sigma + 0.5))
    weight /= weight.sum(axis=1, keepdims=True)
    voxel = np.arange(length)
    source = (voxel[:, None] + offset) % (2 * length)
    source = np.where(source < length, source, 2 * length - 1 - source)
    matrix = np.zeros((len(sigma), length, length))
    for tap in range(len(offset)):  # within a tap, no voxel comes twice
        matrix[:, voxel, source[:, tap]] += weight[:, tap, None]
    return matrix


def change_contrast(x: Tensor, factor: np.ndarray) -> Tensor:
    """Stretch the values around their mean, clipped to the range they had."""
    stretch, mean = _column(factor, x), _column(x.flatten(1).mean(dim=1), x)
    return _clamp((x - mean).mul_(stretch).add_(mean), *_extent(x))


def _clamp(x: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """Clip each image in place to its own range."""
    return torch.minimum(torch.maximum(x, lowest, out=x), highest, out=x)


def lower_resolution(x: Tensor, zoom: np.ndarray) -> Tensor:
    """Sample every axis down to `zoom` [M] of its length and back up, clipped to the range the values had."""
    return _clamp(_along_axes(x, partial(_resampling, zoom=zoom)), *_extent(x))


def _resampling(length: int, zoom: np.ndarray) -> np.ndarray:
    """Matrices [M, length, length]: nearest voxels of a coarser axis, and back by cubic convolution."""
    coarse = (length * zoom).round().clip(min=1)[:, None, None]
    voxel = np.arange(length)[:, None]
    position = (voxel + 0.5) * coarse / length - 0.5
    tap = np.floor(position) + np.arange(-1, 3)
    d = abs(position - tap)
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weight = np.where(d <= 1, near, np.where(d < 2, far, 0))
    source = np.minimum(tap.clip(min=0), coarse - 1)
    source = np.floor((source + 0.5) * length / coarse).astype(np.int64).clip(max=length - 1)
    matrix = np.zeros((len(zoom), length, length))
    np.add.at(matrix, (np.arange(len(zoom))[:, None, None], voxel, source), weight)
    return matrix


def change_gamma(x: Tensor, gamma: np.ndarray, invert: bool) -> Tensor:
    """Gamma correction of the values scaled to [0, 1], or of the inverted ones; mean and deviation stay."""
    lowest, highest = _extent(x)
    width = highest - lowest + 1e-7
    changed = (highest - x if invert else x - lowest).div_(width)
    _, std = _centre(changed.clone())
    mean = _column(x.flatten(1).mean(dim=1), x)
    changed.pow_(_column(gamma, x))
    _, new_std = _centre(changed)
    scale = std * width / (new_std + 1e-8 / width)
    return changed.mul_(-scale if invert else scale).add_(mean)


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
    flat, host = out.view(number * channels, *x.shape[2:]), rng.Host(generator)

    def uniform(each: int, bounds: tuple[float, float]) -> np.ndarray:
        """Parameters [N * each]."""
        return bounds[0] + host.rand(number, each).ravel() * (bounds[1] - bounds[0])

    def two_sided(each: int, bounds: tuple[float, float]) -> np.ndarray:
        """Half of the parameters below 1, half above."""
        below, above = uniform(each, (bounds[0], 1)), uniform(each, (1, bounds[1]))
        return np.where(host.rand(number, each).ravel() < 0.5, below, above)

    def apply(change: Callable[[Tensor, Any], Tensor], parameter: np.ndarray, p: float, p_channel: float = 1.0) -> None:
        """Change a random part of the images; `parameter` has a value for each of all."""
        picked = (host.rand(number, 1) < p * strength) & (host.rand(number, channels) < p_channel)
        change_rows(flat, picked.ravel().nonzero()[0], change, parameter)

    # Few rows get noise, and which ones is random: it comes from a seed of each row, not from the common generator.
    seeds, sigma = host.randint(0, 2**31, number, channels).ravel(), uniform(1, NOISE_SIGMA).repeat(channels)

    def add_noise(rows: Tensor, row: np.ndarray) -> Tensor:
        noise = rng.noise(seeds[row].tolist(), rows.shape[1:], rows.device).to(x.dtype)
        return noise.mul_(_column(sigma[row], rows)).add_(rows)

    apply(add_noise, np.arange(number * channels), 0.1)
    apply(blur, uniform(channels, BLUR_SIGMA), 0.2, 0.5)
    apply(lambda rows, factor: rows * _column(factor, rows), uniform(channels, FACTOR), 0.15)
    apply(change_contrast, two_sided(channels, FACTOR), 0.15)
    apply(lower_resolution, uniform(channels, ZOOM), low_resolution, 0.5)
    apply(partial(change_gamma, invert=True), two_sided(channels, GAMMA), 0.1)
    apply(partial(change_gamma, invert=False), two_sided(channels, GAMMA), 0.3)
    return out


def change_rows(flat: Tensor, rows: np.ndarray, change: Callable[[Tensor, Any], Tensor], parameter: np.ndarray) -> None:
    """Change some of the images [M, *spatial] in place; `parameter` [M] has a value for each of all.

    A GPU changes all of them at once; a CPU one after the other, which thus stay in its cache.
    """
    if flat.device.type == "cpu":
        for row in rows.tolist():
            one = slice(row, row + 1)
            flat[one] = change(flat[one], parameter[one])
    elif len(rows):
        index = to_device(rows, flat.device)
        flat.index_copy_(0, index, change(flat.index_select(0, index), parameter[rows]))
