"""progress.png of a pre-training run, and learning curves of several runs side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_ssl.files.atomic import atomic_write

YARDSTICK = "val_yardstick"
OWN_PANELS = (YARDSTICK, "train_losses", "val_losses", "lrs", "epoch_start_timestamps", "epoch_end_timestamps")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")


def draw_progress(logging: Mapping[str, Sequence[Any]], path: str | os.PathLike[str]) -> None:
    """Draw losses, further named terms (where there are any), learning rate and seconds per epoch as a PNG.

    logging: nnU-Net's lists with one value per epoch. Lists may be missing, empty, of different length or hold NaN;
    keys beyond nnU-Net's own are drawn as terms when they hold numbers.
    """
    series = {key: per_epoch(values) for key, values in logging.items()}
    terms = {key: values for key, values in series.items() if key not in OWN_PANELS and len(values)}
    figure, panels = _panels(4 if terms else 3)
    _draw(panels[0], {"training": series.get("train_losses"), "validation": series.get("val_losses")}, "loss")
    _draw_yardstick(panels[0], series.get(YARDSTICK))
    if terms:
        _draw(panels[1], {key.replace("_", " "): values for key, values in terms.items()}, "terms")
    _draw(panels[-2], {"": series.get("lrs")}, "learning rate")
    start, end = (series.get(f"epoch_{which}_timestamps", per_epoch([])) for which in ("start", "end"))
    length = min(len(start), len(end))
    _draw(panels[-1], {"": end[:length] - start[:length]}, "time per epoch [s]")
    panels[-1].set_ylim(0, 1.1 * panels[-1].get_ylim()[1])
    _save(figure, panels, path)


def draw_comparison(
    runs: Mapping[str, Mapping[str, Sequence[Any]]], path: str | os.PathLike[str], keys: Mapping[str, str]
) -> None:
    """Draw several runs' loggings as a PNG, a panel per entry of `keys` (key in the logging -> axis label)."""
    figure, panels = _panels(len(keys))
    for axes, (key, label) in zip(panels, keys.items(), strict=True):
        _draw(axes, {name: per_epoch(logging.get(key, [])) for name, logging in runs.items()}, label)
    _save(figure, panels, path)


def per_epoch(values: Sequence[Any]) -> np.ndarray:
    """The values as floats, NaN where there is none; empty when the list does not hold numbers at all."""
    try:
        numbers = np.asarray([np.nan if value is None else value for value in values], dtype=float)
    except (TypeError, ValueError):
        return np.empty(0)
    return numbers if numbers.ndim == 1 else np.empty(0)


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    # Explicit colours and sizes throughout: nnU-Net's own plots change matplotlib's defaults for the whole process.
    figure = Figure(figsize=(8, 1.2 + 2.3 * number), dpi=110, facecolor="white", layout="constrained")
    return figure, [figure.add_subplot(number, 1, panel + 1) for panel in range(number)]


def plain_axes(axes: Axes) -> None:
    """White, with a light grid and two spines, whatever nnU-Net's own plots made of matplotlib's defaults."""
    axes.set_facecolor("white")
    axes.grid(True, color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors="black", length=3)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color="#888888", linewidth=0.8)


def _draw(axes: Axes, curves: Mapping[str, np.ndarray | None], label: str) -> None:
    plain_axes(axes)
    axes.set_ylabel(label, fontsize=9, color="black")
    for (name, values), colour in zip(curves.items(), _cycle(len(curves)), strict=True):
        if values is None or not np.isfinite(values).any():
            continue
        # A value between two missing ones would be invisible as a line; so would a run's first epoch.
        marker = "o" if np.isfinite(values).sum() < 30 else ""
        axes.plot(
            np.arange(1, len(values) + 1),
            values,
            color=colour,
            linewidth=1.6,
            marker=marker,
            markersize=3,
            label=name or None,
        )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, ncol=4, loc="best", labelcolor="black")
    elif not axes.lines:
        axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", fontsize=9, color="#888888")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.get_offset_text().set_fontsize(8)


def _draw_yardstick(axes: Axes, values: np.ndarray | None) -> None:
    """The loss of the best answer that does not look at the image, as a dashed line."""
    if values is None or not np.isfinite(values).any():
        return
    axes.axhline(
        float(values[np.isfinite(values)][-1]), color="#555555", linewidth=1.2, linestyle="--", label="yardstick"
    )
    axes.legend(fontsize=8, frameon=False, ncol=4, loc="best", labelcolor="black")


def _save(figure: Figure, panels: Sequence[Axes], path: str | os.PathLike[str]) -> None:
    last = max((np.size(line.get_xdata()) for axes in panels for line in axes.lines), default=1)  # counted from 1
    for axes in panels:
        axes.set_xlim(0.5 - 0.02 * last, last + 0.02 * last + 0.5)
    panels[-1].set_xlabel("epoch", fontsize=9, color="black")
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _cycle(number: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(number)]
