"""A table of features as a picture: images near each other where their features are, coloured by what is known of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from nnunet_ssl.losses.embeddings import health
from nnunet_ssl.report.page import Page
from nnunet_ssl.report.planes import DPI, LABEL_COLOURS

if TYPE_CHECKING:
    from nnunet_ssl.targets.probe import Probed

MOST = len(LABEL_COLOURS)  # colours; rarer values are "others"


def project(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places [N, 2], share of the variance along each of the two axes) of features [N, C]: their principal components.

    Every feature counts by its own standard deviation (z-scores); constant ones do not count.
    """
    deviation = features.std(axis=0)
    scaled = (features - features.mean(axis=0))[:, deviation > 0] / deviation[deviation > 0]
    if min(scaled.shape) < 2:
        return np.zeros((len(features), 2)), np.zeros(2)
    left, singular, _ = np.linalg.svd(scaled, full_matrices=False)
    signs = np.sign(left[np.abs(left).argmax(axis=0), range(left.shape[1])])  # the same picture on every machine
    return (left * singular * signs)[:, :2], singular[:2] ** 2 / (singular**2).sum()


def write_embedding_page(
    path: str | os.PathLike[str],
    table: pd.DataFrame,
    features: list[str],
    colour: pd.Series | None,
    title: str,
    probed: Sequence[Probed] = (),
) -> None:
    """Write the page on a table of features, one HTML file.

    colour: a value per row, text or numbers; None: one colour. probed: what a linear model finds in them.
    """
    places, shares = project(table[features].to_numpy(np.float64))
    page = Page(title, f"{len(table):,} rows, {len(features):,} features each.")
    page.heading("Where they lie")
    name = "" if colour is None else f" Coloured by {colour.name}."
    page.figure(
        _scatter(places, colour),
        f"The first two principal components of the z-scored features; they hold {shares[0]:.0%} and {shares[1]:.0%} of the "
        f"variance.{name} Near each other: alike for the network.",
    )
    embeddings = torch.from_numpy(table[features].to_numpy(np.float32, copy=True))
    alive = health(embeddings)
    most = min(len(table) - 1, len(features))
    page.facts(
        {
            "constant features": int((table[features].std() == 0).sum()),
            "spread": f"{float(alive['spread']):.2f} (1: spread evenly; 0: all alike)",
            "effective rank": f"{float(alive['effective_rank']):.1f} of at most {most}",
        },
        "A spread near 0, a rank near 1 or many constant features are signs of a collapsed pre-training.",
    )
    for found in probed:
        page.heading(found.target.name)
        page.key_message(str(found))
        rows = [(name, f"{m['value']:.3f}", f"{m['low']:.3f} to {m['high']:.3f}") for name, m in found.measures.items()]
        page.table(
            ("measure", "value", "95 % interval"), rows, "Intervals by resampling people, with all images of each."
        )
    page.write(path)


def _scatter(places: np.ndarray, colour: pd.Series | None) -> bytes:
    figure = Figure(figsize=(8, 6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    first, second = places.T
    style: dict[str, Any] = {"s": 16, "alpha": 0.8, "linewidths": 0}
    if colour is None:
        axes.scatter(first, second, color=LABEL_COLOURS[4], **style)
    elif pd.api.types.is_numeric_dtype(colour) and colour.nunique() > MOST:
        drawn = axes.scatter(first, second, c=colour.astype(float), cmap="viridis", **style)
        figure.colorbar(drawn, label=str(colour.name))
    else:
        values = colour.fillna("not known").astype(str)
        frequent = list(values.value_counts().index[: MOST if values.nunique() <= MOST else MOST - 1])
        groups = values.where(values.isin(frequent), "others")
        for value, tone in zip([*frequent, "others"], [*LABEL_COLOURS[: len(frequent)], "#888888"], strict=True):
            some = (groups == value).to_numpy()
            if some.any():
                axes.scatter(first[some], second[some], color=tone, label=f"{value} ({int(some.sum())})", **style)
        axes.legend(title=str(colour.name), frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    axes.set_xlabel("first component")
    axes.set_ylabel("second component")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
