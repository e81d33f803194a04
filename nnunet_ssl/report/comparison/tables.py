"""The tables of a comparison's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_ssl.messages import counted
from nnunet_ssl.report.comparison.differences import lower_is_better
from nnunet_ssl.report.comparison.fairness import labels
from nnunet_ssl.report.comparison.folder import Comparison, short
from nnunet_ssl.report.comparison.overall import verdict_of
from nnunet_ssl.report.comparison.published import Published, published_columns
from nnunet_ssl.report.comparison.words import amount, change, interval, p_value
from nnunet_ssl.report.page import Marked, Page

NONE = "\N{EN DASH}"
DIFFERENCES = (
    "data set",
    "labelled",
    "arm",
    "difference",
    "p",
    "better / worse / equal",
    "over seeds",
    "over folds",
    "verdict",
)


def results_tables(page: Page, comparison: Comparison, metric: str, found: Mapping[str, Any]) -> None:
    """A table data sets x arms for every number of labelled cases that has scores, and what they show."""
    numbers = [n for n in comparison.labelled if any(row["labelled"] == n for row in found["means"])]
    # The papers trained on all of their training cases: their numbers stand beside those with most labels.
    published = published_columns(comparison, metric)
    for number in numbers:
        _results_table(page, comparison, metric, found, number, published if number == numbers[-1] else [])
    if numbers:
        page.paragraph(_explanation(comparison, metric, published))


def _results_table(
    page: Page,
    comparison: Comparison,
    metric: str,
    found: Mapping[str, Any],
    number: str,
    published: Sequence[Published],
) -> None:
    """Data sets x arms with one number of labelled cases: means, the best in bold, differences to the reference below."""
    means = {(row["dataset"], row["arm"]): row for row in found["means"] if row["labelled"] == number}
    arms = [arm for arm in comparison.arms if any(name == arm for _, name in means)]
    differences = {(row["dataset"], row["arm"]): row for row in found["differences"] if row["labelled"] == number}
    ranks = next((row for row in found["ranks"] if row["labelled"] == number and "mean" in row), None)
    rows: list[list[object]] = []
    for dataset in comparison.datasets:
        best = _best(ranks, dataset)
        cells = [
            Marked(
                amount(means[dataset, arm]["mean"], metric) if (dataset, arm) in means else NONE,
                _difference(differences.get((dataset, arm)), metric),
                arm in best,
            )
            for arm in arms
        ]
        rows.append([short(dataset), *cells, *(Marked(column.of(dataset), aside=True) for column in published)])
    if len(comparison.datasets) > 1 or published:
        rows += _over_datasets(comparison, metric, found, number, arms, means, ranks, published)
    page.table(
        [labels(number), *arms, *(Marked(c.title, f"published, {c.backbone}", aside=True) for c in published)],
        rows,
    )


def _over_datasets(
    comparison: Comparison,
    metric: str,
    found: Mapping[str, Any],
    number: str,
    arms: Sequence[str],
    means: Mapping[tuple[str, str], Mapping[str, Any]],
    ranks: Mapping[str, Any] | None,
    published: Sequence[Published],
) -> list[list[object]]:
    """The mean over the data sets of which every arm has scores, and the average rank over them."""
    full = ranks["datasets"] if ranks else []
    if not ranks or not full:
        return []
    values = {arm: float(np.mean([means[dataset, arm]["mean"] for dataset in full])) for arm in arms}
    rounded = {arm: amount(value, metric) for arm, value in values.items()}
    top = (min if lower_is_better(metric) else max)(values, key=lambda arm: values[arm])
    overall = {row["arm"]: row for row in found["overall"] if row["labelled"] == number}
    all_of_them = counted(len(comparison.datasets), "data set")
    name = (
        f"mean of {all_of_them}" if len(full) == len(comparison.datasets) else f"mean of {len(full)} of {all_of_them}"
    )
    mean_row: list[object] = [Marked(name, best=True)]
    mean_row += [
        Marked(rounded[arm], _difference(overall.get(arm), metric), rounded[arm] == rounded[top]) for arm in arms
    ]
    mean_row += [Marked(column.mean, column.datasets, aside=True) for column in published]
    place = {arm: n for n, arm in enumerate(ranks["arms"])}
    lowest = min(ranks["mean"])
    rank_row: list[object] = ["average rank"]
    for arm in arms:
        n = place[arm]
        span = f"{ranks['low'][n]:.2f} to {ranks['high'][n]:.2f}"
        rank_row.append(Marked(f"{ranks['mean'][n]:.2f}", span, ranks["mean"][n] == lowest))
    rank_row += [Marked(column.rank, aside=True) for column in published]
    return [mean_row, rank_row]


def _best(ranks: Mapping[str, Any] | None, dataset: str) -> list[str]:
    """The arms with the best rank on a data set, by the cases that all arms have."""
    if not ranks or dataset not in ranks["by_dataset"]:
        return []
    own = ranks["by_dataset"][dataset]
    return [arm for arm, rank in zip(ranks["arms"], own, strict=True) if rank == min(own)]


def _difference(row: Mapping[str, Any] | None, metric: str) -> str:
    if row is None or not row["cases"]:
        return ""
    return f"{change(row['difference'], metric)} ({interval(row, metric)})"


def _explanation(comparison: Comparison, metric: str, published: Sequence[Published]) -> str:
    better = "small is good [mm]" if lower_is_better(metric) else "from 0 to 1, large is good"
    text = (
        f"Mean {metric} ({better}) over test cases, runs averaged per case. Bold: the best on the cases that all arms "
        f"have. Below: the paired difference to {comparison.reference} with its 95 % interval over cases, without correction for "
        "several arms."
    )
    if published:
        text += (
            " In italics, set apart: published numbers, for orientation. They come from other splits, trainings and code, and "
            "are not comparable to the last digit."
        )
    return text


def differences_table(page: Page, metric: str, found: Mapping[str, Any], comparison: Comparison) -> None:
    """Every paired difference with all that is known of it: first over all data sets, then in each."""
    several = len(comparison.datasets) > 1
    rows = [_over_all(row, metric) for row in found["overall"]] if several else []
    rows += [_in_one(row, metric) for row in found["differences"] if row["cases"]]
    if not rows:
        return
    caption = (
        f"Paired differences in {metric} to {comparison.reference}, over the cases that both arms have, with their 95 % "
        "interval over cases. p: Wilcoxon's signed-rank test over cases, with Holm's correction over the arms, and without. An "
        "arm helped or hurt where interval and corrected test agree. How much the mean difference changes with the random "
        "numbers, and with the training cases: standard deviations over seeds and over folds (where folds test other cases, "
        "these are in it)."
    )
    if several:
        caption += (
            " Over all data sets each counts the same, and ranks are given within data sets; the interval is about the cases of "
            "these data sets, not about other data sets."
        )
    page.table(DIFFERENCES, rows, caption)


def _over_all(row: Mapping[str, Any], metric: str) -> list[object]:
    datasets = f"better in {row['datasets_better']} of {len(row['datasets'])}"
    return [Marked("all data sets", datasets, best=True), *_cells(row, metric), NONE, row["verdict"]]


def _in_one(row: Mapping[str, Any], metric: str) -> list[object]:
    folds = spread(row["fold_deviation"], row["folds"], "fold")
    return [short(row["dataset"]), *_cells(row, metric), folds, verdict_of(row, metric)]


def _cells(row: Mapping[str, Any], metric: str) -> list[object]:
    p, corrected = (p_value(row[name]).removeprefix("p ").removeprefix("= ") for name in ("p", "p_holm"))
    return [
        row["labelled"],
        row["arm"],
        Marked(change(row["difference"], metric), interval(row, metric)),
        Marked(corrected, f"alone {p}"),
        "\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}".join(str(row[name]) for name in ("better", "worse", "equal")),
        spread(row["seed_deviation"], row["seeds"], "seed"),
    ]


def spread(value: float, number: int, what: str) -> Marked:
    """A standard deviation over seeds or folds, or that there is only one."""
    if not np.isfinite(value):
        return Marked(f"one {what}" if number == 1 else NONE)
    return Marked(f"{value:.3f}", f"{number} {what}s")


def structure_table(page: Page, metric: str, rows: Sequence[Mapping[str, Any]], comparison: Comparison) -> None:
    """Means by structure, with most labelled cases, of data sets that have several."""
    shown = [row for row in rows if row["labelled"] == comparison.labelled[-1] and len(row["structures"]) > 1]
    if not shown:
        return
    arms = [arm for arm in comparison.arms if any(row["arm"] == arm for row in shown)]
    lines: list[list[object]] = []
    for dataset in dict.fromkeys(row["dataset"] for row in shown):
        own = {row["arm"]: row for row in shown if row["dataset"] == dataset}
        names = list(dict.fromkeys(name for row in own.values() for name in row["structures"]))
        lines += [[short(dataset), name, *(_of(own, arm, name, metric) for arm in arms)] for name in names]
    page.table(
        ["data set", "structure or region", *arms],
        lines,
        f"Mean {metric} by structure with {labels(comparison.labelled[-1])}. As in nnU-Net, a structure that is absent from "
        "truth and prediction has no value and is left out. Of one that is predicted though absent, or missed, Dice and NSD "
        "are 0, and HD95 is the image's diagonal. A case's score is the mean over its structures that have a value.",
    )


def _of(rows: Mapping[str, Mapping[str, Any]], arm: str, structure: str, metric: str) -> str:
    value = rows[arm]["structures"].get(structure) if arm in rows else None
    return NONE if value is None else amount(value, metric)
