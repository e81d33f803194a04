"""The pictures of a comparison: differences per case, ranks, and curves over labelled cases and over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from nnunet_ssl.report.comparison.differences import lower_is_better
from nnunet_ssl.report.comparison.fairness import labels
from nnunet_ssl.report.comparison.folder import number_of, short
from nnunet_ssl.report.planes import DPI
from nnunet_ssl.report.progress import COLOURS, per_epoch, plain_axes

REFERENCE_COLOUR = "#555555"
MARKERS = "osD^vPX"
PANEL = (3.0, 2.3)  # inches
COLUMNS = 3
SMALL: dict[str, Any] = {"fontsize": 8, "color": "black"}


class Look:
    """Colour and marker of every arm, the same in all pictures; the reference is grey."""

    def __init__(self, arms: Sequence[str], reference: str) -> None:
        others = [arm for arm in arms if arm != reference]
        self.reference = reference
        self.colours = {arm: COLOURS[n % (len(COLOURS) - 1)] for n, arm in enumerate(others)}
        self.colours[reference] = REFERENCE_COLOUR
        self.markers = {arm: MARKERS[n % len(MARKERS)] for n, arm in enumerate([reference, *others])}


def png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _grid(number: int, height: float = PANEL[1]) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, number)
    rows = -(-number // columns)
    size = (max(4.6, PANEL[0] * columns), 0.5 + height * rows)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    panels = [figure.add_subplot(rows, columns, n + 1) for n in range(number)]
    for axes in panels:
        plain_axes(axes)
    return figure, panels


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    if handles:
        columns = min(len(names), 4)
        figure.legend(
            handles, names, loc="outside lower center", ncol=columns, fontsize=8, frameon=False, labelcolor="black"
        )


def draw_differences(rows: Sequence[Mapping[str, Any]], metric: str, look: Look) -> Figure:
    """A panel per data set and number of labelled cases: each case's difference as a dot, the mean with its interval."""
    keys = list(dict.fromkeys((row["dataset"], row["labelled"]) for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    columns = len({number for _, number in keys})
    datasets = list(dict.fromkeys(dataset for dataset, _ in keys))
    numbers = list(dict.fromkeys(number for _, number in sorted(keys, key=lambda key: number_of(key[1]))))
    height = 0.75 + 0.42 * len(arms)
    figure = Figure(
        figsize=(max(4.6, 1.1 + 2.9 * columns), 0.45 + height * len(datasets)),
        dpi=DPI,
        facecolor="white",
        layout="constrained",
    )
    panels = figure.subplots(len(datasets), columns, squeeze=False, sharex="row", sharey=True)
    for i, dataset in enumerate(datasets):
        for j, number in enumerate(numbers):
            axes = panels[i, j]
            plain_axes(axes)
            for row in rows:
                if (row["dataset"], row["labelled"]) == (dataset, number):
                    _dots(axes, row, arms.index(row["arm"]), look)
            axes.axvline(0, color="#888888", linewidth=1)
            axes.set_yticks(range(len(arms)), arms, **SMALL)
            axes.set_ylim(len(arms) - 0.5, -0.5)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_title(f"{short(dataset)}, {labels(number)}", **SMALL)
    unit = " [mm], left of 0 is better" if lower_is_better(metric) else ", right of 0 is better"
    figure.supxlabel(f"{metric}, arm minus {look.reference}{unit}", **SMALL)
    return figure


def _dots(axes: Axes, row: Mapping[str, Any], place: int, look: Look) -> None:
    values = np.sort(np.array(list(row["by_case"].values()), dtype=float))
    if not len(values):
        return
    colour = look.colours[row["arm"]]
    # A swarm: dots that would lie on each other are moved apart, up and down in turn.
    span = max(float(np.ptp(values)), 1e-9)
    bins = np.round((values - values[0]) / span * 40).astype(int)
    within = np.array([np.sum(bins[:n] == b) for n, b in enumerate(bins)])
    step = min(0.12, 0.7 / max(1, within.max() + 1))
    offsets = (within + 1) // 2 * np.where(within % 2, 1, -1) * step
    axes.scatter(values, place + offsets, s=9, color=colour, alpha=0.45, linewidths=0)
    axes.plot([row["low"], row["high"]], [place, place], color="black", linewidth=2.2, solid_capstyle="butt")
    axes.plot([row["difference"]], [place], marker="D", markersize=5, color="black", markerfacecolor=colour)


def draw_ranks(rows: Sequence[Mapping[str, Any]], look: Look) -> Figure:
    """A panel per number of labelled cases: average ranks with their intervals, ranks in single data sets as dots."""
    shown = [row for row in rows if "mean" in row]
    most = max(len(row["arms"]) for row in shown)
    figure, panels = _grid(len(shown), 0.8 + 0.36 * most)
    for axes, row in zip(panels, shown, strict=True):
        order = np.argsort(row["mean"], kind="stable")
        for place, n in enumerate(order):
            arm = row["arms"][n]
            own = [ranks[n] for ranks in row["by_dataset"].values()]
            axes.scatter(own, [place + 0.24] * len(own), s=7, color="#AAAAAA", linewidths=0)
            axes.plot([row["low"][n], row["high"][n]], [place, place], color=look.colours[arm], linewidth=2.4)
            axes.plot(row["mean"][n], place, marker=look.markers[arm], markersize=6, color=look.colours[arm])
        axes.set_yticks(range(len(order)), [row["arms"][n] for n in order], **SMALL)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xlim(0.8, len(order) + 0.2)
        axes.xaxis.set_major_locator(FixedLocator(list(range(1, len(order) + 1))))
        axes.set_title(f"{labels(row['labelled'])}", **SMALL)
        axes.set_xlabel("average rank, 1 is best", **SMALL)
    return figure


def draw_learning_curves(
    curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], metric: str, look: Look
) -> Figure:
    """A panel per data set (or mean of them): the mean score by number of training cases, on a logarithmic axis.

    curves: panel -> arm -> (number of training cases, mean, lowest, highest seed) of every point.
    """
    figure, panels = _grid(len(curves), 2.5)
    for axes, (name, arms) in zip(panels, curves.items(), strict=True):
        numbers = sorted({point[0] for points in arms.values() for point in points})
        for arm, points in arms.items():
            x, mean, low, high = np.array(sorted(map(tuple, points))).T
            style: dict[str, Any] = {"color": look.colours[arm], "marker": look.markers[arm]}
            axes.fill_between(x, low, high, color=look.colours[arm], alpha=0.18, linewidth=0)
            axes.plot(x, mean, label=arm, linewidth=1.6, markersize=4.5, **style)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(numbers))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{number:g}" for number in numbers])
        axes.set_title(short(name), **SMALL)
        axes.set_xlabel("training cases", **SMALL)
    for axes in panels[::COLUMNS]:
        axes.set_ylabel(f"mean {metric}", **SMALL)
    _legend(figure, panels[0])
    return figure


def draw_training(
    curves: Mapping[str, Mapping[str, Sequence[Mapping[str, Sequence[Any]]]]], keys: Mapping[str, str], look: Look
) -> Figure:
    """A row per data set, a panel per key: the arms' trainings, every one as a thin line, their mean as a thick one.

    curves: data set -> arm -> one curve per training (key -> a value per epoch); keys: key -> what to call it.
    """
    size = (max(4.6, PANEL[0] * len(keys)), 0.5 + 2.1 * len(curves))
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(len(curves), len(keys), squeeze=False)
    for row, (dataset, arms) in zip(panels, curves.items(), strict=True):
        for axes, (key, name) in zip(row, keys.items(), strict=True):
            plain_axes(axes)
            for arm, trainings in arms.items():
                _lines(axes, [per_epoch(training.get(key) or []) for training in trainings], look.colours[arm], arm)
            axes.set_title(f"{short(dataset)}: {name}", **SMALL)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set_xlabel("epoch", **SMALL)
    _legend(figure, max(panels.ravel(), key=lambda axes: len(axes.get_legend_handles_labels()[0])))
    return figure


def _lines(axes: Axes, trainings: Sequence[np.ndarray], colour: str, arm: str) -> None:
    known = [training for training in trainings if np.isfinite(training).any()]
    if not known:
        return
    for training in known if len(known) > 1 else ():
        axes.plot(np.arange(1, len(training) + 1), training, color=colour, linewidth=0.5, alpha=0.5)
    length = max(map(len, known))
    table = np.full((len(known), length), np.nan)
    for line, training in zip(table, known, strict=True):
        line[: len(training)] = training
    reached = np.isfinite(table).all(axis=0)  # a mean of fewer trainings would jump where one ends
    mean = np.where(reached, np.where(reached, table, 0).mean(axis=0), np.nan)
    marker = "o" if length < 3 else ""
    axes.plot(np.arange(1, length + 1), mean, color=colour, linewidth=1.7, label=arm, marker=marker, markersize=3)
