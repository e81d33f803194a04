"""Pictures of what a network was given and what it made of it: pretext previews and segmentation overlays."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Patch

from nnunet_ssl.files.atomic import atomic_write
from nnunet_ssl.report.planes import (
    LABEL_COLOURS,
    Plane,
    fullest_planes,
    grey_window,
    lay_out,
    middle_planes,
    to_array,
)

HIDDEN_COLOUR = "#8F7FB5"  # a muted violet: no grey of an image can be mistaken for it


def draw_preview(
    preview: Mapping[str, Any], path: str | os.PathLike[str], title: str = "", spacing: Sequence[float] | None = None
) -> None:
    """Draw the images of one sample as a PNG: a column per entry, a row per axis (one row for 2D), mid-slices.

    preview: tensors or arrays [C, *spatial] in drawing order; of several channels the first is shown. All images share
    the grey window of the first one, but for "corrupted", whose grey values are changed on purpose. Bool entries are
    masks (True = hidden), other integers label maps, names that end in "_error" or equal "error" are drawn as magnitudes.
    A mask called "hidden" gets no column of its own where there is an image called "masked": it is painted over that
    one. Without it, the voxels in which "masked" differs from "input" are painted, if all of them have one value (noise
    in their place stays visible). Two views, with names that all end in "_a" or "_b", are drawn below each other.
    spacing: voxel size per axis [mm].

    Raises ValueError for an empty preview and for shapes that cannot be drawn.
    """
    images = {name: _first_channel(name, value) for name, value in preview.items()}
    if not images:
        raise ValueError("The preview has no entries, so there is nothing to draw. Give at least one [C, *spatial].")
    if len({image.ndim for image in images.values()}) > 1:
        shapes = ", ".join(f"{name} {image.shape}" for name, image in images.items())
        raise ValueError(f"One picture shows either 2D or 3D images, found {shapes}. Draw two pictures.")
    views = _views(images)
    first = next(iter(views.values()))
    hidden = {view: _hidden_of_masked(entries) for view, entries in views.items()}
    painted = all(mask is not None for mask in hidden.values())
    columns = [name for name in first if name != "hidden" or not painted]
    kinds = {name: _kind(name, first[name]) for name in columns}
    shared = next((grey_window(first[name]) for name in columns if kinds[name] == "image"), (0.0, 1.0))
    # Entries may differ in size, as crops of contrastive tasks do: each is cut through its own middle.
    planes = {name: middle_planes(first[name]) for name in columns}
    places = [(view, number) for view in views for number in range(len(planes[columns[0]]))]
    scale = _checked_spacing(spacing, first[columns[0]].ndim)
    channels = {name: len(value) for name, value in preview.items()}
    figure, rows = lay_out(
        [_row_name(view, planes[columns[0]][number]) for view, number in places],
        [_caption(name, channels.get(name) or channels[f"{name}_a"]) for name in columns],
        [[planes[name][number].extent(views[view][name], scale) for name in columns] for view, number in places],
        title,
    )
    for (view, number), row in zip(places, rows, strict=True):
        mask = hidden[view]
        for axes, name in zip(row, columns, strict=True):
            plane = planes[name][number]
            window = grey_window(views[view][name]) if name == "corrupted" else shared
            _show(axes, plane.cut(views[view][name]), kinds[name], window)
            if name == "masked" and mask is not None:
                _tint(axes, plane.cut(mask), HIDDEN_COLOUR, 1.0)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def draw_overlay(
    image: Any,
    segmentations: Mapping[str, Any],
    path: str | os.PathLike[str],
    title: str = "",
    spacing: Sequence[float] | None = None,
    label_names: Mapping[int, str] | None = None,
) -> None:
    """Draw label maps over an image as a PNG: the image alone, then a column per segmentation, a row per axis.

    image: [*spatial] or [C, *spatial], then its first channel; segmentations: integer label maps [*spatial], 0 is
    background. The first one is taken for the truth: the slices are those with most of its foreground, and its
    outline is drawn in white over the others. label_names: for the legend.

    Raises ValueError when a label map does not have the shape of the image.
    """
    maps = {name: to_array(value) for name, value in segmentations.items()}
    if not maps:
        raise ValueError("There is no segmentation to draw. Give at least one label map.")
    truth_name, truth = next(iter(maps.items()))
    grey = to_array(image)
    grey = grey[0] if grey.ndim == truth.ndim + 1 else grey
    for name, labels in maps.items():
        if labels.shape != grey.shape:
            raise ValueError(f"Segmentation {name!r} has shape {labels.shape}, the image {grey.shape}. Resample one.")
    planes = fullest_planes(truth)
    scale = _checked_spacing(spacing, grey.ndim)
    extents = [[plane.extent(grey, scale)] * (1 + len(maps)) for plane in planes]
    figure, rows = lay_out([plane.name for plane in planes], ["image", *maps], extents, title, footer=True)
    window = grey_window(grey)
    for plane, row in zip(planes, rows, strict=True):
        for axes in row:
            _show(axes, plane.cut(grey), "image", window)
        for axes, (name, labels) in zip(row[1:], maps.items(), strict=True):
            for label in np.unique(labels[labels > 0]):
                mask = plane.cut(labels) == label
                _tint(axes, mask, _colour(int(label)), 0.45)
                _outline(axes, mask, _colour(int(label)), 1.2)
            if name != truth_name:
                _outline(axes, plane.cut(truth) > 0, "white", 0.8)
    present = sorted({int(label) for labels in maps.values() for label in np.unique(labels[labels > 0])})
    handles = [Patch(color=_colour(label), label=(label_names or {}).get(label, f"label {label}")) for label in present]
    if len(maps) > 1:
        handles.append(Patch(facecolor="#999999", edgecolor="white", label=f"white line: {truth_name}"))
    if handles:
        figure.legend(handles=handles, loc="lower center", ncol=len(handles), frameon=False, fontsize=7)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _first_channel(name: str, value: Any) -> np.ndarray:
    array = to_array(value)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(
            f"Preview entry {name!r} has shape {array.shape}; expected one sample [C, H, W] or [C, D, H, W]. "
            "Take one sample of the batch."
        )
    return array[0]


def _views(images: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Entries by view, without the endings "_a" and "_b"; all under "" unless they are two views of the same kind."""
    pair = {view: {n[:-2]: image for n, image in images.items() if n.endswith(f"_{view}")} for view in "ab"}
    complete = len(pair["a"]) + len(pair["b"]) == len(images)
    shapes = [[(name, image.shape) for name, image in entries.items()] for entries in pair.values()]
    return pair if complete and shapes[0] == shapes[1] else {"": dict(images)}


def _row_name(view: str, plane: Plane) -> str:
    names = [f"view {view}" if view else "", "" if plane.axis is None else f"axis {plane.axis}, middle"]
    return ", ".join(name for name in names if name)


def _hidden_of_masked(images: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The mask to paint over "masked": "hidden", or what differs from "input" when all of it has one value."""
    hidden, masked, whole = images.get("hidden"), images.get("masked"), images.get("input")
    if masked is None:
        return None
    if hidden is not None:
        return hidden if hidden.dtype == bool and hidden.shape == masked.shape else None
    if whole is None or whole.shape != masked.shape:
        return None
    changed = masked != whole
    return changed if len(np.unique(masked[changed])) == 1 else None


def _kind(name: str, image: np.ndarray) -> str:
    if image.dtype == bool:
        return "mask"
    if np.issubdtype(image.dtype, np.integer):
        return "labels"
    return "error" if name == "error" or name.endswith("_error") else "image"


def _caption(name: str, channels: int) -> str:
    text = name.replace("_", " ")
    return text if channels == 1 else f"{text} (channel 1 of {channels})"


def _checked_spacing(spacing: Sequence[float] | None, ndim: int) -> Sequence[float]:
    if spacing is None:
        return [1.0] * ndim
    if len(spacing) != ndim or min(spacing) <= 0:
        raise ValueError(f"spacing must hold {ndim} positive numbers [mm], found {list(spacing)}.")
    return spacing


def _show(axes: Axes, plane: np.ndarray, kind: str, window: tuple[float, float]) -> None:
    # "auto": the axes already have the slice's proportions in mm; voxels need not be square.
    options: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    if kind == "image":
        axes.imshow(plane, cmap="gray", vmin=window[0], vmax=window[1], **options)
    elif kind == "error":
        magnitude = np.abs(plane)
        axes.imshow(magnitude, cmap="magma", vmin=0, vmax=max(grey_window(magnitude)[1], 1e-12), **options)
    elif kind == "mask":
        axes.imshow(plane, cmap=ListedColormap(["#F2F2F2", HIDDEN_COLOUR]), vmin=0, vmax=1, **options)
    else:
        axes.imshow(np.zeros_like(plane), cmap="gray", **options)
        for label in np.unique(plane[plane != 0]):
            _tint(axes, plane == label, _colour(int(label)), 1.0)


def _tint(axes: Axes, mask: np.ndarray, colour: str, opacity: float) -> None:
    layer = np.zeros((*mask.shape, 4))
    layer[mask] = (*to_rgb(colour), opacity)
    axes.imshow(layer, aspect="auto", interpolation="nearest")


def _outline(axes: Axes, mask: np.ndarray, colour: str, width: float) -> None:
    if mask.any() and min(mask.shape) > 1:
        axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=[width])


def _colour(label: int) -> str:
    return LABEL_COLOURS[(label - 1) % len(LABEL_COLOURS)]
