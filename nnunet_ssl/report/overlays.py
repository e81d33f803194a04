"""Pictures of segmentations over images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from nnunet_ssl.files.atomic import atomic_write
from nnunet_ssl.report.geometry import UNKNOWN, Geometry
from nnunet_ssl.report.layout import Note, lay_out
from nnunet_ssl.report.painting import label_colour, mark_sides, outline, show_grey, tint
from nnunet_ssl.report.pictures import convention
from nnunet_ssl.report.planes import STORED, GreyScale, fullest_planes, grey_window, to_array


def draw_overlay(
    image: Any,
    segmentations: Mapping[str, Any],
    path: str | os.PathLike[str],
    title: str = "",
    geometry: Geometry = UNKNOWN,
    label_names: Mapping[int, str] | None = None,
    scale: GreyScale = STORED,
) -> None:
    """Draw label maps over an image as a PNG: the image alone, then a column per segmentation, a row per axis.

    image: [*spatial] or [C, *spatial], then its first channel; segmentations: integer label maps [*spatial], 0 is
    background. The first one is taken for the truth: the slices are those with most of its foreground, and its
    outline is drawn in white over the others. label_names: for the legend. geometry, scale: of the image.

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
    geometry.require(grey.ndim)
    grey, maps = geometry.displayed(grey), {name: geometry.displayed(labels) for name, labels in maps.items()}
    truth = maps[truth_name]
    planes, spacing, window = fullest_planes(truth), geometry.displayed_spacing(grey.ndim), grey_window(grey)
    present = sorted({int(label) for labels in maps.values() for label in np.unique(labels[labels > 0])})
    notes = [Note((label_names or {}).get(label, f"label {label}"), label_colour(label)) for label in present]
    if len(maps) > 1:
        notes.append(Note(f"White line: {truth_name}."))
    notes.append(Note(f"Grey values: {scale.window(*window)}."))
    notes.append(Note(convention(geometry)))
    figure, rows = lay_out(
        [geometry.plane_name(plane.axis) for plane in planes],
        ["image", *maps],
        [[plane.extent(grey, spacing)] * (1 + len(maps)) for plane in planes],
        title,
        notes,
    )
    for plane, row in zip(planes, rows, strict=True):
        for axes in row:
            show_grey(axes, plane.cut(grey), window)
        for axes, (name, labels) in zip(row[1:], maps.items(), strict=True):
            for label in np.unique(labels[labels > 0]):
                mask = plane.cut(labels) == label
                tint(axes, mask, label_colour(int(label)), 0.45)
                outline(axes, mask, label_colour(int(label)), 1.2)
            if name != truth_name:
                outline(axes, plane.cut(truth) > 0, "white", 0.8)
        marks = geometry.marks(plane.axis)
        if marks is not None:
            mark_sides(row[0], marks)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
