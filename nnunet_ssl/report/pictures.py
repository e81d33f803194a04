"""Pictures of what a network was given and what it made of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from nnunet_ssl.files.atomic import atomic_write
from nnunet_ssl.report.entries import Kind, View, channels_of, views_of
from nnunet_ssl.report.geometry import UNKNOWN, Geometry
from nnunet_ssl.report.layout import Note, lay_out
from nnunet_ssl.report.painting import (
    BOX_COLOUR,
    HIDDEN_COLOUR,
    NO_IMAGE_COLOURS,
    label_colour,
    mark_sides,
    outline,
    show_error,
    show_grey,
    show_labels,
    show_mask,
    show_shares,
    stripe,
    tint,
)
from nnunet_ssl.report.planes import LABEL_COLOURS, NORMALISED, GreyScale, Plane, grey_window

RADIOLOGICAL = "Radiological convention: the patient's right (R) is on the left; A front, P back, S head, I feet."
AS_STORED = "Drawn as it lies in memory: the orientation of this image is not known."
AS_TURNED = "Drawn as the task turned it: sides are not marked."


def convention(geometry: Geometry) -> str:
    """The convention that an image is drawn in, in a sentence."""
    return AS_STORED if geometry.codes is None else AS_TURNED if geometry.turned else RADIOLOGICAL


def draw_preview(
    preview: Mapping[str, Any],
    path: str | os.PathLike[str],
    title: str = "",
    geometry: Geometry = UNKNOWN,
    scale: GreyScale = NORMALISED,
) -> None:
    """Draw the images of one sample as a PNG: a column per entry, a row per axis (one row for 2D), mid-slices.

    preview: tensors or arrays [C, *spatial] in drawing order; of several channels the first is shown. All images share
    the grey window of the first one, but for "corrupted", whose grey values are changed on purpose. Bool entries are
    masks, drawn over the first image of their shape (`..._of_x` over `x`), and slices go through their middle; other integers
    are label maps. Names that end in "_error" or equal "error" are drawn as magnitudes, those that end in "_share" as values
    from 0 to 1.
    A mask called "hidden" (True = hidden) gets no column of its own where there is an image called "masked": it is painted
    over that one; or "corrupted": it is drawn around. Without it, the voxels in which "masked" differs from "input" are
    painted, if all of them have one value (noise in their place stays visible). A mask called "excluded" has no column either:
    where it is True there is no image, only stripes, in all entries of its shape, or where it is called `excluded_of_x` in `x`.
    Two views, with names that all end in "_a" or "_b", are drawn below each other.
    geometry, scale: of the images.

    Raises ValueError for an empty preview and for shapes that cannot be drawn.
    """
    views = views_of(preview, geometry)
    first = next(iter(views.values()))
    painted = all(view.hidden is not None or view.outlined is not None for view in views.values())
    columns = [name for name in first.entries if name != "hidden" or not painted]
    window = next((grey_window(first.entries[n]) for n in columns if first.kinds[n] is Kind.IMAGE), (0.0, 1.0))
    # Entries may differ in size, as crops of contrastive tasks do: each is cut through its own middle.
    planes = {(letter, name): view.planes(name) for letter, view in views.items() for name in columns}
    places = [(letter, number) for letter in views for number in range(len(planes[letter, columns[0]]))]
    spacing = geometry.displayed_spacing(first.entries[columns[0]].ndim)
    axes_of_rows = [planes[letter, columns[0]][number].axis for letter, number in places]
    channels = channels_of(preview, columns)
    figure, rows = lay_out(
        [_row_name(letter, geometry.plane_name(axis)) for (letter, _), axis in zip(places, axes_of_rows, strict=True)],
        [_caption(name, channels[name]) for name in columns],
        [
            [planes[letter, name][number].extent(views[letter].entries[name], spacing) for name in columns]
            for letter, number in places
        ],
        title,
        _notes(views, columns, window, scale, geometry),
    )
    for (letter, number), axis, row in zip(places, axes_of_rows, rows, strict=True):
        for axes, name in zip(row, columns, strict=True):
            _draw(axes, views[letter], name, planes[letter, name][number], window)
        marks = geometry.marks(axis)
        if marks is not None:
            mark_sides(row[0], marks)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _draw(axes: Axes, view: View, name: str, plane: Plane, window: tuple[float, float]) -> None:
    image = view.entries[name]
    kind, cut = view.kinds[name], plane.cut(image)
    if kind is Kind.IMAGE:
        show_grey(axes, cut, grey_window(image) if name == "corrupted" else window)
        if name == "corrupted" and view.outlined is not None:
            outline(axes, plane.cut(view.outlined), HIDDEN_COLOUR, 1.4)
        if name == "masked" and view.hidden is not None:
            tint(axes, plane.cut(view.hidden), HIDDEN_COLOUR, 1.0)
    elif kind is Kind.ERROR:
        show_error(axes, cut, _largest(image))
    elif kind is Kind.LABELS:
        show_labels(axes, cut)
    elif kind is Kind.SHARE:
        areas = view.areas(name)
        show_shares(axes, cut, None if areas is None else plane.cut(areas))
    else:
        colour, below = (HIDDEN_COLOUR if kind is Kind.HIDDEN else BOX_COLOUR), view.below(name)
        if below is None or kind is Kind.HIDDEN:
            show_mask(axes, cut, colour)
        else:
            show_grey(axes, plane.cut(below), window)
            tint(axes, cut, colour, 0.35)
            outline(axes, cut, colour, 1.2)
    excluded = view.striped(name)
    if excluded is not None:
        stripe(axes, plane.cut(excluded))


def _notes(
    views: Mapping[str, View],
    columns: Sequence[str],
    window: tuple[float, float],
    scale: GreyScale,
    geometry: Geometry,
) -> list[Note]:
    """What the colours and greys of a picture mean, as far as they are in it."""
    every = list(views.values())
    kinds = every[0].kinds
    images = [name for name in columns if kinds[name] is Kind.IMAGE]
    notes = []
    if any(view.outlined is not None and view.outlined.any() for view in every):
        notes.append(Note("inside this line the task replaced the image", HIDDEN_COLOUR))
    if any(mask.any() for view in every for mask in view.hidden_masks(columns)):
        notes.append(Note("hidden from the network", HIDDEN_COLOUR))
    if any(view.striped(name) is not None for view in every for name in columns):
        notes.append(Note("no image here (padding, or anonymised): does not count", *_stripes()))
    masks = [_caption(name) for name in columns if kinds[name] is Kind.MASK]
    if masks:
        notes.append(Note(f"the place that the column names ({', '.join(masks)})", BOX_COLOUR))
    for name in (n for n in columns if kinds[n] is Kind.LABELS):
        labels = sorted({int(n) for view in every for n in np.unique(view.entries[name])})
        notes.append(Note(f"{_caption(name)}: {_colours(labels)}"))
    if any(kinds[name] is Kind.SHARE for name in columns):
        notes.append(Note("shares: from 0 % (dark blue) to 100 % (yellow)"))
    notes += [
        Note(f"{_caption(n)}: 0 (black) to {_largest(every[0].entries[n]):.3g} (bright)")
        for n in columns
        if kinds[n] is Kind.ERROR
    ]
    if images and set(images) != {"corrupted"}:
        notes.append(Note(f"Grey values: {scale.window(*window)}."))
    if "corrupted" in images:
        notes.append(Note(f"Grey values of corrupted: {scale.window(*grey_window(every[0].entries['corrupted']))}."))
    notes.append(Note(convention(geometry)))
    return notes


def _stripes() -> tuple[str, str]:
    return NO_IMAGE_COLOURS[0], "/////"


def _colours(labels: Sequence[int]) -> str:
    words = ("orange", "light blue", "green", "yellow", "dark blue", "red", "pink")
    some = [label for label in labels if 0 < label <= len(words)]
    named = [f"{label} {words[LABEL_COLOURS.index(label_colour(label))]}" for label in some]
    zero, more = ["0 black"] if 0 in labels else [], ["and so on"] if max(labels) > len(words) else []
    return ", ".join([*zero, *named, *more])


def _largest(image: np.ndarray) -> float:
    return max(grey_window(np.abs(image))[1], 1e-12)


def _row_name(view: str, plane: str) -> str:
    return ", ".join(name for name in (f"view {view}" if view else "", plane) if name)


def _caption(name: str, channels: int = 1) -> str:
    text = name.replace("_", " ")
    return text if channels == 1 else f"{text} (channel 1 of {channels})"
