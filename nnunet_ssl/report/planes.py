"""Slices of displayed images: which ones, how large, in which greys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Okabe and Ito's palette: readers with colour vision deficiency can tell these apart, on grey images too.
LABEL_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
DPI = 120


@dataclass(frozen=True)
class Plane:
    """One slice: `index` along `axis` of a displayed image [*spatial]; a 2D image has one plane, without axis."""

    axis: int | None
    index: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The slice [H, W] of `image` [*spatial]."""
        return image if self.axis is None else np.take(image, self.index, axis=self.axis)

    def extent(self, image: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
        """Height and width of the slice in units of `spacing`."""
        size = [n * s for n, s in zip(image.shape, spacing, strict=True)]
        height, width = size if self.axis is None else [v for a, v in enumerate(size) if a != self.axis]
        return height, width


def middle_planes(image: np.ndarray) -> list[Plane]:
    """The mid-slice along every axis of a 3D image, or the one plane of a 2D image."""
    if image.ndim == 2:
        return [Plane(None, 0)]
    return [Plane(axis, n // 2) for axis, n in enumerate(image.shape)]


def planes_through(mask: np.ndarray) -> list[Plane]:
    """Along every axis the slice through the middle of what is True in a mask [*spatial]."""
    if mask.ndim == 2 or not mask.any():
        return middle_planes(mask)
    return [Plane(axis, round(float(places.mean()))) for axis, places in enumerate(np.nonzero(mask))]


def fullest_planes(labels: np.ndarray) -> list[Plane]:
    """Along every axis the slice that shows most foreground of a label map [*spatial]."""
    if labels.ndim == 2 or not labels.any():
        return middle_planes(labels)
    foreground = labels > 0
    others = [tuple(a for a in range(3) if a != axis) for axis in range(3)]
    return [Plane(axis, int(foreground.sum(axis=others[axis]).argmax())) for axis in range(3)]


def to_array(value: Any) -> np.ndarray:
    """Numpy array of a tensor on any device and of any precision, or of an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.float()
        value = value.numpy()
    return np.asarray(value)


def grey_window(image: np.ndarray) -> tuple[float, float]:
    """Black and white point: the 0.5 and 99.5 percentiles of the finite values, never equal."""
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)


@dataclass(frozen=True)
class GreyScale:
    """What the grey values of a preprocessed image are: `slope` * value + `offset` in `unit`."""

    unit: str = "normalised"
    slope: float = 1.0
    offset: float = 0.0

    def window(self, low: float, high: float) -> str:
        """A window in words."""
        low, high = (self.slope * value + self.offset for value in (low, high))
        width = high - low
        values = (0.0 if abs(v) < 1e-3 * width else v for v in (low, high))
        low_text, high_text = (f"{v:.0f}" if abs(v) >= 100 else f"{v:.3g}" for v in values)
        return f"{low_text} (black) to {high_text} (white), {self.unit}"


NORMALISED, STORED = GreyScale(), GreyScale("as stored")
