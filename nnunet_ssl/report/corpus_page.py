"""The page of a corpus: tables, histograms, and a contact sheet of mid-slices."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nnunet_ssl.corpus.overview.samples import Sample
from nnunet_ssl.corpus.overview.sections import Section
from nnunet_ssl.corpus.table import SHAPE, SPACING
from nnunet_ssl.report.page import Page
from nnunet_ssl.report.planes import DPI, LABEL_COLOURS

COLUMNS = 10  # of the contact sheet
CELL_INCHES = 1.05
CAPTION_INCHES = 0.3
MAX_CHARACTERS = 20
COLOUR = LABEL_COLOURS[4]


def write_corpus_page(
    path: str | os.PathLike[str], name: str, table: pd.DataFrame, sections: Sequence[Section], samples: Sequence[Sample]
) -> None:
    """Write the page on a data set as one HTML file."""
    good = table[table["problem"].isna()]
    page = Page(name, f"{len(good):,} images, {len(table) - len(good):,} bad files left out.")
    shown = [sample for sample in samples if sample.thumbnail is not None]
    if shown:
        page.heading("What the images show")
        page.figure(
            _png(contact_sheet(shown, good)),
            f"Mid-slices of {len(shown)} of {len(good):,} images, across the axis with the largest spacing, grouped by "
            "modality; black and white are the 1st and 99th percentile of each image.",
        )
    if good["depth"].notna().any():
        page.heading("How large they are")
        page.figure(_png(histograms(good)), "Voxels per axis, spacing, slices and size in millimetres of all images.")
    for section in sections:
        page.heading(section.title)
        if section.rows:
            page.table(section.header, section.rows, section.caption)
        else:
            page.paragraph(section.caption)
    page.write(path)


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def contact_sheet(samples: Sequence[Sample], table: pd.DataFrame) -> Figure:
    """Thumbnails in rows of ten, grouped by modality, each with modality and case."""
    modality = dict(zip(table["case"], table["modality"].astype(object).fillna("unknown"), strict=True))
    ordered = sorted(samples, key=lambda s: (str(modality.get(s.case, "")), s.case))
    rows = math.ceil(len(ordered) / COLUMNS)
    columns = min(COLUMNS, len(ordered))
    height = rows * (CELL_INCHES + CAPTION_INCHES)
    width = columns * CELL_INCHES
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for number, sample in enumerate(ordered):
        row, column = divmod(number, COLUMNS)
        bottom = height - (row + 1) * (CELL_INCHES + CAPTION_INCHES)
        picture = sample.thumbnail
        assert picture is not None
        scale = (CELL_INCHES - 0.05) / max(picture.shape)
        h, w = picture.shape[0] * scale, picture.shape[1] * scale
        left = column * CELL_INCHES + (CELL_INCHES - w) / 2
        axes = figure.add_axes(
            (left / width, (bottom + CAPTION_INCHES + (CELL_INCHES - h) / 2) / height, w / width, h / height)
        )
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        centre = (column + 0.5) * CELL_INCHES / width
        for offset, text, colour in ((0.2, modality.get(sample.case, ""), "black"), (0.08, sample.case, "#555555")):
            figure.text(
                centre,
                (bottom + offset) / height,
                _short(str(text)),
                ha="center",
                va="center",
                fontsize=5.5,
                color=colour,
            )
    return figure


def histograms(table: pd.DataFrame) -> Figure:
    """Six histograms: voxels and spacing in the plane and across, slices, extent."""
    known = table[table["depth"].notna()]
    shape = known[list(SHAPE)].astype(float).to_numpy()
    spacing = known[list(SPACING)].astype(float).to_numpy()
    figure = Figure(figsize=(8.8, 4.6), dpi=DPI, facecolor="white", layout="constrained")
    panels = (
        ("slices (along the largest spacing)", known["slices"].astype(float).to_numpy()),
        ("largest spacing [mm]", spacing.max(axis=1)),
        ("smallest spacing [mm]", spacing.min(axis=1)),
        ("most voxels along an axis", shape.max(axis=1)),
        ("longest edge [mm]", (shape * spacing).max(axis=1)),
        ("million voxels", shape.prod(axis=1) / 1e6),
    )
    for axes, (title, values) in zip(figure.subplots(2, 3).ravel(), panels, strict=True):
        axes.hist(values, bins=_edges(values), color=COLOUR)
        axes.set_xlabel(title, fontsize=8)
        axes.set_ylabel("images", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of at most 30 bins; of whole numbers each bin has equally many."""
    low, high = float(values.min()), float(values.max())
    if np.array_equal(values, np.round(values)):
        width = math.ceil((high - low + 1) / 30)
        return np.arange(low - 0.5, high + width, width)
    return np.linspace(low, high, 31) if high > low else np.array([low - 0.5, high + 0.5])


def _short(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:8]}...{text[-9:]}"
