"""Slices of images as pictures: which ones, which way up, how large, in which greys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette: readers with colour vision deficiency can tell these apart, on grey images too.
LABEL_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
CELL_INCHES = 2.2  # of the longest edge of any slice
NAME_INCHES = 0.28  # for row names on the left
CAPTION_INCHES = 0.26
GAP_INCHES = 0.06
DPI = 120


@dataclass(frozen=True)
class Plane:
    """One slice: `index` along `axis` of an image [*spatial]; a 2D image has one plane, without axis."""

    axis: int | None
    index: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The slice [H, W] of `image` [*spatial]."""
        if self.axis is None:
            return image
        plane = np.take(image, self.index, axis=self.axis)
        # Files lie in memory with the feet first: turned over, the head is up in coronal and sagittal slices.
        return plane if self.axis == 0 else plane[::-1]

    def extent(self, image: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
        """Height and width of the slice in units of `spacing`."""
        size = [n * s for n, s in zip(image.shape, spacing, strict=True)]
        height, width = size if self.axis is None else [v for a, v in enumerate(size) if a != self.axis]
        return height, width

    @property
    def name(self) -> str:
        """What to write beside the slice; nnU-Net may have swapped axes, so anatomical names would be a guess."""
        return "" if self.axis is None else f"axis {self.axis}, slice {self.index + 1}"


def middle_planes(image: np.ndarray) -> list[Plane]:
    """The mid-slice along every axis of a 3D image, or the one plane of a 2D image."""
    if image.ndim == 2:
        return [Plane(None, 0)]
    return [Plane(axis, n // 2) for axis, n in enumerate(image.shape)]


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


def lay_out(
    row_names: Sequence[str],
    column_names: Sequence[str],
    extents: Sequence[Sequence[tuple[float, float]]],
    title: str = "",
    footer: bool = False,
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of bare axes [row][column], each shaped like its slice, with captions on top and row names on the left.

    extents: (height, width) of every slice [row][column], all in one unit. footer: leave room for a legend.
    Works on Figure objects alone: pyplot's global state would be shared with other threads and with nnU-Net's plots.
    """
    scale = CELL_INCHES / max(edge for row in extents for extent in row for edge in extent)
    widths = [max(max(w for _, w in column) * scale, 0.9) for column in zip(*extents, strict=True)]
    heights = [max(h for h, _ in row) * scale for row in extents]
    left = NAME_INCHES if any(row_names) else GAP_INCHES
    top = CAPTION_INCHES * (2.2 if title else 1.1)
    bottom = CAPTION_INCHES * 1.2 if footer else GAP_INCHES
    width = left + sum(widths) + GAP_INCHES * len(widths)
    height = top + sum(heights) + GAP_INCHES * (len(heights) - 1) + bottom
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    if title:
        figure.text(0.5, 1 - 0.1 / height, title, ha="center", va="top", fontsize=10, fontweight="bold", color="black")
    centres = [left + sum(widths[:c]) + GAP_INCHES * c + w / 2 for c, w in enumerate(widths)]
    for name, x in zip(column_names, centres, strict=True):
        y = height - top + 0.06
        figure.text(x / width, y / height, name, ha="center", va="bottom", fontsize=8, color="black")
    rows = []
    for r, (name, row) in enumerate(zip(row_names, extents, strict=True)):
        y = height - top - sum(heights[: r + 1]) - GAP_INCHES * r + heights[r] / 2
        figure.text(0.08 / width, y / height, name, rotation=90, va="center", fontsize=6.5, color="#555555")
        cells = []
        for x, extent in zip(centres, row, strict=True):
            h, w = (edge * scale for edge in extent)
            axes = figure.add_axes(((x - w / 2) / width, (y - h / 2) / height, w / width, h / height))
            axes.set_axis_off()
            cells.append(axes)
        rows.append(cells)
    return figure, rows
