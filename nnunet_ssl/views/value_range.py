"""The range of values of each image, whatever its unit: z-scores, Hounsfield units of a window, [0, 1]."""

from __future__ import annotations

from torch import Tensor

OUTLIERS = 0.001  # share of voxels beyond either end of the range: percentiles 0.1 and 99.9, as Models Genesis' authors
ENOUGH_VOXELS = 2**16  # that are sorted per image and channel; more do not move the percentiles


def value_range(image: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
    """The percentiles 0.1 and 99.9 [B, C, 1, ...] per sample and channel of an image [B, C, *spatial].

    Of evenly spread voxels where there are many, and the lowest and highest value where there are less than a thousand.
    Excluded voxels (bool [B, 1, *spatial]) do not count; (0, 0) where all are excluded.
    """
    # An odd step shares no power of two with the image's axes, so that all rows and columns have their turn.
    step = image[0, 0].numel() // ENOUGH_VOXELS | 1
    values, left_out = image.flatten(2)[..., ::step], excluded.flatten(2)[..., ::step]
    ordered = values.float().masked_fill(left_out, float("inf")).sort(dim=-1).values
    last = (~left_out).sum(dim=-1, keepdim=True) - 1  # -1: all are excluded
    low, high = (
        ordered.gather(-1, place.long().clamp(min=0).expand(*ordered.shape[:2], 1)).masked_fill(last < 0, 0)
        for place in ((last * OUTLIERS).floor(), (last * (1 - OUTLIERS)).ceil())
    )
    return tuple(v.view(*v.shape[:2], *[1] * (image.ndim - 2)) for v in (low, high))  # type: ignore[return-value]
