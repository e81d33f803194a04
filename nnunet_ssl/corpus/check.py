"""Is an image fit for training? One sentence why not, or None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MIN_VOXELS = 512  # 8 x 8 x 8: one Primus token
MAX_VOXELS = 2**30  # 4 GB per channel in single precision; far beyond any scanner, near every wrong header


def check_image(
    array: np.ndarray, properties: Mapping[str, Any], *, num_channels: int | None = None, flat_allowed: bool = False
) -> str | None:
    """Reason why an image [C, D, H, W] as read by nnU-Net is unusable, None when it is fine.

    `properties["spacing"]` is in mm. With `num_channels`, the image must have that many. `flat_allowed` lets single slices
    [C, 1, H, W] pass, as 2-D datasets have them.
    """
    spacing = properties.get("spacing")
    if array.ndim != 4:
        return f"not a volume: shape {list(array.shape)}, expected [channels, depth, height, width]"
    if num_channels is not None and len(array) != num_channels:
        if num_channels == 1:
            return (
                f"4-D: {len(array)} volumes in one file. nnUNetv2_pretrain_import --series makes an image of the first, "
                "of each, or of their mean"
            )
        return f"{len(array)} channels, dataset.json names {num_channels}"
    shape = array.shape[1:]
    if array.size == 0:
        return f"no voxels: shape {list(array.shape)}"
    if min(shape) == 1 and not flat_allowed:
        return f"a single slice: {shape_text(shape)} voxels, expected a volume"
    if np.prod(shape) < MIN_VOXELS:
        return f"too small: {shape_text(shape)} voxels, expected at least {MIN_VOXELS} in all"
    if spacing is None or len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        shown = None if spacing is None else [float(s) for s in spacing]
        return f"impossible spacing: {shown}, expected three numbers above 0 (mm)"
    return _check_intensities(array)


def check_cropped_shape(shape: Sequence[int]) -> str | None:
    """Reason why an image whose non-zero region has `shape` voxels is unusable, None when it is fine."""
    if np.prod(shape) >= MIN_VOXELS:
        return None
    return f"almost empty: the part that is not 0 has {shape_text(shape)} voxels, expected at least {MIN_VOXELS} in all"


def check_resampled_shape(shape: Sequence[int], spacing: Sequence[float]) -> str | None:
    """Reason why an image that resampling brings to `shape` voxels of `spacing` mm is unusable, None when it is fine."""
    voxels = float(np.prod([float(s) for s in shape]))
    sizes = f"{shape_text(shape)} voxels of {' x '.join(f'{s:g}' for s in spacing)} mm"
    if min(shape) < 1:
        return f"too thin: it would become {sizes}"
    return f"too large: it would become {sizes}. Is the spacing in its header right?" if voxels > MAX_VOXELS else None


def shape_text(shape: Sequence[float]) -> str:
    """`40 x 56 x 40`."""
    return " x ".join(str(int(s)) for s in shape)


def _check_intensities(array: np.ndarray) -> str | None:
    num_bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if num_bad:
        return f"{num_bad} of {array.size} values are NaN or infinite"
    lowest, highest = array.min(), array.max()
    if lowest == highest == 0:
        return "empty: every voxel is 0, or NaN, which ITK reads from NIfTI files as 0"
    # A single constant channel is no reason: a missing sequence is often stored as zeros.
    if all(channel.min() == channel.max() for channel in array):
        return f"constant: every voxel is {lowest:g}" if lowest == highest else "constant: every channel has one value"
    return None
