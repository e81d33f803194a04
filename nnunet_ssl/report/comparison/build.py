"""The page of a comparison, section by section, from its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_ssl.messages import counted
from nnunet_ssl.report.comparison.cases import MAX_PICTURES, draw_case, extremes
from nnunet_ssl.report.comparison.circumstances import circumstances
from nnunet_ssl.report.comparison.fairness import labels
from nnunet_ssl.report.comparison.folder import FAILED, FINISHED, Comparison, short
from nnunet_ssl.report.comparison.pictures import (
    Look,
    draw_differences,
    draw_learning_curves,
    draw_ranks,
    draw_training,
    png,
)
from nnunet_ssl.report.comparison.published import about_protocol
from nnunet_ssl.report.comparison.tables import differences_table, results_tables, structure_table
from nnunet_ssl.report.comparison.words import change
from nnunet_ssl.report.page import Page

PER_PICTURE = 4  # data sets, in pictures with a row for each
MAX_WARNINGS = 5  # of the trainings, above everything else; the rest stands below
CURVES = {"train_losses": "training loss", "val_losses": "validation loss", "pseudo_dice": "pseudo Dice"}


def build_page(comparison: Comparison, summary: Mapping[str, Any]) -> Page:
    """The page; summary: of `summarise`."""
    look = Look(comparison.arms, comparison.reference)
    page = Page("Does pre-training help?", _lead(comparison))
    for text in summary["answer"]:
        page.key_message(text)
    _state(page, summary["cells"])
    for text in summary["cautions"]:
        page.paragraph(text)
    for text in (*summary["differences_in_setup"], *summary["warnings"][:MAX_WARNINGS]):
        page.warning(text)
    for n, (metric, found) in enumerate(summary["metrics"].items()):
        _numbers(page, comparison, metric, found)
        if n == 0:
            _pictures(page, comparison, metric, found, summary, look)
    _training(page, comparison, look)
    _cases(page, comparison, summary)
    _left_out(page, summary)
    about_protocol(page, comparison)
    circumstances(page, comparison, summary)
    return page


def _lead(comparison: Comparison) -> str:
    arms = ", ".join(arm for arm in comparison.arms if arm != comparison.reference)
    return (
        f"{arms or 'No other arm'} against {comparison.reference} on {counted(len(comparison.datasets), 'data set')}: the same "
        "cases, folds, seeds and numbers of labelled cases for all of them."
    )


def _state(page: Page, cells: Mapping[str, int]) -> None:
    if cells[FINISHED] == cells["expected"]:
        page.paragraph(f"All {counted(cells['expected'], 'training')} are finished.")
        return
    others = ", ".join(
        f"{number:,} {state}" for state, number in cells.items() if state not in ("expected", FINISHED) and number
    )
    page.warning(
        f"{cells[FINISHED]:,} of {counted(cells['expected'], 'training')} are finished ({others}): the numbers below are "
        f"those of the finished ones{', and failed ones are listed under What was left out' if cells[FAILED] else ''}."
    )


def _numbers(page: Page, comparison: Comparison, metric: str, found: Mapping[str, Any]) -> None:
    page.heading(f"{metric}: data sets and arms")
    if not found["means"]:
        page.paragraph("No training has scores yet.")
        return
    results_tables(page, comparison, metric, found)
    differences_table(page, metric, found, comparison)
    structure_table(page, metric, found["means"], comparison)


def _pictures(
    page: Page,
    comparison: Comparison,
    metric: str,
    found: Mapping[str, Any],
    summary: Mapping[str, Any],
    look: Look,
) -> None:
    if any("mean" in row for row in found["ranks"]):
        page.heading("Ranks")
        page.figure(
            png(draw_ranks(found["ranks"], look)),
            f"Average rank of every arm over the data sets, by mean {metric}, 1 is best; equal means share ranks. Bars: 95 % of "
            "the ranks when cases are drawn anew within each data set. Grey dots: ranks in single data sets.",
        )
    curves = _learning_curves(comparison, found["means"], summary["training_cases"])
    if curves:
        page.heading("How many labelled cases")
        page.figure(
            png(draw_learning_curves(curves, metric, look)),
            f"Mean {metric} by number of training cases. Bands: from the lowest to the highest seed, none with one seed. How "
            "sure a difference is, they do not show: that is in the tables, where cases are paired.",
        )
    if any(row["cases"] for row in found["differences"]):
        page.heading("Every case")
        for datasets in _parts(comparison.datasets):
            rows = [row for row in found["differences"] if row["cases"] and row["dataset"] in datasets]
            if rows:
                page.figure(
                    png(draw_differences(rows, metric, look)),
                    f"Difference in {metric} to {comparison.reference} of every test case, runs averaged. Diamonds: the "
                    "mean; black bars: its 95 % interval.",
                )


def _learning_curves(
    comparison: Comparison, means: Sequence[Mapping[str, Any]], numbers: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, list[list[float]]]]:
    """Panel -> arm -> points; none where there is one number of labelled cases."""
    if len(comparison.labelled) < 2:
        return {}
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for row in means:
        number = numbers.get(row["dataset"], {}).get(row["labelled"])
        if number is not None and row["cases"]:
            seeds = list(row["by_seed"].values())
            point = [number, row["mean"], min(seeds), max(seeds)]
            curves.setdefault(row["dataset"], {}).setdefault(row["arm"], []).append(point)
    return {name: curves[name] for name in comparison.datasets if name in curves}


def _parts(datasets: Sequence[str]) -> list[Sequence[str]]:
    """The data sets in parts whose pictures fit a printed page."""
    return [datasets[n : n + PER_PICTURE] for n in range(0, len(datasets), PER_PICTURE)]


def _training(page: Page, comparison: Comparison, look: Look) -> None:
    curves: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    shown = comparison.labelled[-1]
    for cell in comparison.cells:
        curve = cell.noted.get("curve")
        if cell.key.labelled == shown and isinstance(curve, dict) and curve:
            curves.setdefault(cell.key.dataset, {}).setdefault(cell.key.arm, []).append(curve)
    if not curves:
        return
    page.heading("Training")
    keys = {
        key: name
        for key, name in CURVES.items()
        if any(key in c for a in curves.values() for t in a.values() for c in t)
    }
    for datasets in _parts(list(curves)) if keys else ():
        page.figure(
            png(draw_training({dataset: curves[dataset] for dataset in datasets}, keys, look)),
            f"The trainings with {labels(shown)}: thin lines are folds and seeds, the thick ones their means. The pseudo Dice is "
            "nnU-Net's quick estimate on random patches.",
        )


def _cases(page: Page, comparison: Comparison, summary: Mapping[str, Any]) -> None:
    metric = summary["metric"]
    arms = comparison.pretrained or [arm for arm in comparison.arms if arm != comparison.reference]
    found = extremes(summary["metrics"][metric]["differences"], arms, metric)
    if not found:
        return
    page.heading("Cases that gained and lost most")
    page.table(
        ["data set", "case", "arm", f"{metric}, arm minus {comparison.reference}"],
        [[short(e.dataset), e.case, e.arm, change(e.difference, metric)] for e in found],
        f"Of every data set the case with the largest gain and the one with the largest loss, with {labels(found[-1].labelled)}. "
        "They are chosen because they are extreme: they do not show what is usual.",
    )
    missing = []
    for extreme in found[:MAX_PICTURES]:
        drawn = draw_case(comparison, extreme)
        if isinstance(drawn, str):
            missing.append(drawn)
            continue
        picture, run = drawn
        page.figure(
            picture,
            f"{extreme.dataset}, {extreme.case}: {'gained' if extreme.gained else 'lost'} most with {extreme.arm} "
            f"({metric} {change(extreme.difference, metric)}, runs averaged). Predictions of {run}.",
        )
    for text in dict.fromkeys(missing):
        page.paragraph(text)


def _left_out(page: Page, summary: Mapping[str, Any]) -> None:
    if summary["left_out"]:
        page.heading("What was left out")
        page.items(summary["left_out"])
    if len(summary["warnings"]) > MAX_WARNINGS:
        page.heading("What the trainings also warned of")
        page.items(summary["warnings"][MAX_WARNINGS:])
