"""The range of values of each image, whatever its unit: z-scores, Hounsfield units of a window, [0, 1]."""

from __future__ import annotations

from torch import Tensor


def value_range(image: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value [B, C, 1, ...] per sample and channel of an image [B, C, *spatial].

    Excluded voxels (bool [B, 1, *spatial]) do not count; (0, 0) where all are excluded.
    """
    axes = tuple(range(2, image.ndim))
    low = image.masked_fill(excluded, float("inf")).amin(axes, keepdim=True)
    high = image.masked_fill(excluded, float("-inf")).amax(axes, keepdim=True)
    nothing = low > high
    return low.masked_fill(nothing, 0), high.masked_fill(nothing, 0)
