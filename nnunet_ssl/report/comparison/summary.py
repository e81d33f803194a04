"""summary.json: everything the page says, in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nnunet_ssl.report.comparison.differences import all_differences, case_scores
from nnunet_ssl.report.comparison.fairness import differences_in_setup, left_out, states, warnings_of_cells
from nnunet_ssl.report.comparison.folder import Comparison, number_of
from nnunet_ssl.report.comparison.overall import overall
from nnunet_ssl.report.comparison.published import lacking, published_rows
from nnunet_ssl.report.comparison.ranks import all_means, all_ranks
from nnunet_ssl.report.comparison.words import cautions, headline

FORMAT = 1


def summarise(comparison: Comparison) -> dict[str, Any]:
    """What a comparison says, as plain data; numbers that are not known are NaN.

    The first metric of the description is the one that the answer is about.
    """
    metrics = {metric: _of_metric(comparison, metric) for metric in comparison.metrics}
    metric, first = next(iter(metrics.items()))
    reference, pretrained = comparison.reference, comparison.pretrained
    return {
        "format": FORMAT,
        "reference": reference,
        "metric": metric,
        "answer": headline(first["overall"], metric, comparison.arms, pretrained, reference),
        "cautions": cautions(first["overall"], reference),
        "cells": states(comparison),
        "metrics": metrics,
        "training_cases": training_cases(comparison),
        "differences_in_setup": differences_in_setup(comparison),
        "warnings": warnings_of_cells(comparison),
        "left_out": lacking(comparison)
        + left_out(
            comparison,
            {name: found["differences"] for name, found in metrics.items()},
            {name: found["ranks"] for name, found in metrics.items()},
        ),
        "published": published_rows(comparison),
        "seconds": _seconds(comparison),
        "description": dict(comparison.description),
    }


def _of_metric(comparison: Comparison, metric: str) -> dict[str, Any]:
    cases = case_scores(comparison.scores, metric)
    asked = comparison.datasets, comparison.labelled, comparison.arms
    differences = all_differences(cases, *asked, comparison.reference, metric)
    return {
        "means": all_means(cases, comparison.scores, metric),
        "differences": differences,
        "overall": overall(differences, comparison.labelled, comparison.arms, metric),
        "ranks": all_ranks(cases, *asked, metric),
    }


def training_cases(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Data set -> number of labelled cases as asked for -> cases that were trained on, averaged over folds.

    Where no training noted its cases it is the number asked for, and for "all" nothing.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for cell in comparison.finished():
        noted, asked = cell.noted.get("training_cases"), number_of(cell.key.labelled)
        number = float(len(noted)) if isinstance(noted, list) and noted else asked
        if math.isfinite(number):
            found.setdefault(cell.key.dataset, {}).setdefault(cell.key.labelled, []).append(number)
    return {
        dataset: {labelled: sum(numbers) / len(numbers) for labelled, numbers in own.items()}
        for dataset, own in found.items()
    }


def _seconds(comparison: Comparison) -> dict[str, float]:
    """Seconds of all cells together, by what they were spent on."""
    total: dict[str, float] = {}
    for cell in comparison.cells:
        for what, seconds in (cell.noted.get("seconds") or {}).items():
            if isinstance(seconds, (int, float)):
                total[what] = total.get(what, 0.0) + seconds
    return total


def without_nan(value: Any) -> Any:
    """The same with None in place of numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
