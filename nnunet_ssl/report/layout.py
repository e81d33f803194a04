"""The figure around the slices: captions, names of the planes, and below them what the colours mean."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nnunet_ssl.report.planes import DPI

CELL_INCHES = 2.2  # of the longest edge of any slice
NAME_INCHES = 0.28  # for the names of the planes on the left
CAPTION_INCHES = 0.26
GAP_INCHES = 0.06
NOTE_INCHES = 0.15  # per line
NOTE_SIZE = 6.5  # points


class Note(NamedTuple):
    """A line below the slices; with a colour or a hatching it explains that."""

    text: str
    colour: str | None = None
    hatch: str | None = None


def lay_out(
    row_names: Sequence[str],
    column_names: Sequence[str],
    extents: Sequence[Sequence[tuple[float, float]]],
    title: str = "",
    notes: Sequence[Note] = (),
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of bare axes [row][column], each shaped like its slice, with captions on top and row names on the left.

    extents: (height, width) of every slice [row][column], all in one unit.
    Works on Figure objects alone: pyplot's global state would be shared with other threads and with nnU-Net's plots.
    """
    scale = CELL_INCHES / max(edge for row in extents for extent in row for edge in extent)
    widths = [max(max(w for _, w in column) * scale, 0.9) for column in zip(*extents, strict=True)]
    heights = [max(h for h, _ in row) * scale for row in extents]
    left = NAME_INCHES if any(row_names) else GAP_INCHES
    top = CAPTION_INCHES * (2.2 if title else 1.1)
    width = left + sum(widths) + GAP_INCHES * len(widths)
    lines = _wrapped(notes, width)
    bottom = GAP_INCHES * 2 + NOTE_INCHES * len(lines)
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
    for number, note in enumerate(lines):
        _write(figure, note, bottom - GAP_INCHES - NOTE_INCHES * (number + 0.5))
    return figure, rows


def _wrapped(notes: Sequence[Note], width: float) -> list[Note]:
    """Notes of one line each; the second line of one has no colour again."""
    letters = max(20, int((width - 0.4) * 72 / (0.5 * NOTE_SIZE)))
    lines = []
    for note in notes:
        first, *more = textwrap.wrap(note.text, letters)
        coloured = note.colour is not None
        # None stands for text from the edge on, "" for text that goes on below that of a coloured line.
        lines += [note._replace(text=first), *(Note(text, "" if coloured else None) for text in more)]
    return lines


def _write(figure: Figure, note: Note, y: float) -> None:
    width, height = figure.get_size_inches()
    if note.colour:
        box = (0.08 / width, (y - 0.045) / height), 0.16 / width, 0.09 / height
        style: dict[str, Any] = {
            "facecolor": note.colour,
            "edgecolor": "#777777",
            "linewidth": 0.4,
            "hatch": note.hatch,
        }
        figure.add_artist(Rectangle(*box, transform=figure.transFigure, **style))
    x = 0.08 if note.colour is None else 0.3
    figure.text(x / width, y / height, note.text, va="center", fontsize=NOTE_SIZE, color="#333333")
