"""What is painted into the axes of one slice: greys, colours, outlines, hatching, and the sides of the patient."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patheffects import withStroke

from nnunet_ssl.report.geometry import Marks
from nnunet_ssl.report.planes import LABEL_COLOURS

HIDDEN_COLOUR = "#8F7FB5"  # a muted violet: no grey of an image can be mistaken for it
BOX_COLOUR = "#E69F00"  # of masks that hide nothing: where a crop lies, what two of them share
NO_IMAGE_COLOURS = ("#DCE6EC", "#A9BCC8")  # the stripes where there is no image: no image has them
SHARES = "cividis"  # from 0 to 1, the same for readers with colour vision deficiency
ERRORS = "magma"
STRIPE_PIXELS = 5
# "auto": the axes already have the slice's proportions in mm; voxels need not be square.
OPTIONS: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}


def show_grey(axes: Axes, plane: np.ndarray, window: tuple[float, float]) -> None:
    """A slice [H, W] in greys; what is not finite stays white."""
    axes.imshow(plane, cmap="gray", vmin=window[0], vmax=window[1], **OPTIONS)


def show_error(axes: Axes, plane: np.ndarray, largest: float) -> None:
    """Magnitudes from 0 (dark) to `largest` (bright)."""
    axes.imshow(np.abs(plane), cmap=ERRORS, vmin=0, vmax=largest, **OPTIONS)


def show_mask(axes: Axes, plane: np.ndarray, colour: str) -> None:
    """A mask without an image below it."""
    axes.imshow(plane, cmap=ListedColormap(["#F2F2F2", colour]), vmin=0, vmax=1, **OPTIONS)


def show_labels(axes: Axes, plane: np.ndarray) -> None:
    """Labels from 1 on in colours, on black."""
    axes.imshow(np.zeros(plane.shape), cmap="gray", **OPTIONS)
    for label in np.unique(plane[plane != 0]):
        tint(axes, plane == label, label_colour(int(label)), 1.0)


def show_shares(axes: Axes, plane: np.ndarray, areas: np.ndarray | None) -> None:
    """Shares from 0 (dark) to 1 (bright), with the percentage written into each of the `areas`, a label map [H, W]."""
    axes.imshow(plane, cmap=SHARES, vmin=0, vmax=1, **OPTIONS)
    if areas is None:
        areas = np.ones(plane.shape, int)
    for area in np.unique(areas[areas != 0]):
        values = plane[areas == area]
        if not np.ptp(values) < 0.005:
            continue  # no single number can be written into this one
        row, column = (float(places.mean()) for places in np.nonzero(areas == area))
        text = axes.text(column, row, f"{values.mean():.0%}", ha="center", va="center", fontsize=7, color="white")
        text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])


def tint(axes: Axes, mask: np.ndarray, colour: str, opacity: float) -> None:
    """Paint over the voxels where a mask [H, W] is True."""
    layer = np.zeros((*mask.shape, 4))
    layer[mask] = (*to_rgb(colour), opacity)
    axes.imshow(layer, **OPTIONS)


def outline(axes: Axes, mask: np.ndarray, colour: str, width: float) -> None:
    """A line around the voxels where a mask [H, W] is True."""
    if mask.any() and min(mask.shape) > 1:
        axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=[width])


def stripe(axes: Axes, mask: np.ndarray) -> None:
    """Stripes over the voxels where a mask [H, W] is True: there is no image.

    Painted pixel by pixel, for a hatching of matplotlib's ends half a voxel away from a mask's border.
    """
    if not mask.any():
        return
    tint(axes, mask, NO_IMAGE_COLOURS[0], 1.0)  # whose edges are those of the image's voxels to the pixel
    width, height = max(1, round(axes.bbox.width)), max(1, round(axes.bbox.height))  # pixels
    rows, columns = np.arange(height), np.arange(width)
    large = mask[(rows * mask.shape[0] // height)[:, None], columns * mask.shape[1] // width]
    second = (rows[:, None] + columns) // STRIPE_PIXELS % 2
    layer = np.zeros((height, width, 4))
    layer[large] = np.array([(*to_rgb(colour), 1.0) for colour in NO_IMAGE_COLOURS])[second[large]]
    edges = (-0.5, mask.shape[1] - 0.5, mask.shape[0] - 0.5, -0.5)
    axes.imshow(layer, extent=edges, **OPTIONS)


def mark_sides(axes: Axes, marks: Marks) -> None:
    """Write the sides of the patient to the edges of a slice."""
    places = {"left": (0.02, 0.5), "right": (0.98, 0.5), "top": (0.5, 0.98), "bottom": (0.5, 0.02)}
    for side, letter in marks._asdict().items():
        x, y = places[side]
        across = side if side in ("left", "right") else "center"
        along = side if side in ("top", "bottom") else "center"
        text = axes.text(x, y, letter, transform=axes.transAxes, ha=across, va=along, fontsize=7, color="#FFE680")
        text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])


def label_colour(label: int) -> str:
    """The colour of a label from 1 on."""
    return LABEL_COLOURS[(label - 1) % len(LABEL_COLOURS)]
