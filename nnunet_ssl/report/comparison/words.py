"""The numbers of a comparison in sentences that claim nothing which these do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_ssl.messages import counted
from nnunet_ssl.report.comparison.differences import lower_is_better
from nnunet_ssl.report.comparison.fairness import labels
from nnunet_ssl.report.comparison.overall import HELPED, HURT, LEARNED, UNKNOWN, learned
from nnunet_ssl.report.comparison.paired import CONFIDENCE

OTHER = {HELPED: "was better", HURT: "was worse"}  # of arms without pre-trained weights


def headline(
    rows: Sequence[Mapping[str, Any]], metric: str, arms: Sequence[str], pretrained: Sequence[str], reference: str
) -> list[str]:
    """Sentences per arm: helped, hurt or cannot be told, with how many labelled cases, and by how much."""
    sentences = []
    for arm in sorted((name for name in arms if name != reference), key=lambda name: name not in pretrained):
        own = [row for row in rows if row["arm"] == arm]
        sentences.append(_of_arm(arm, own, metric, arm in pretrained, reference))
    if not sentences:
        return ["Nothing can be compared: the description names one arm. Add another one."]
    if not rows:
        return [f"Nothing can be told yet: no case has a score of {reference} and of another arm."]
    return sentences


def _of_arm(arm: str, rows: Sequence[Mapping[str, Any]], metric: str, pretrained: bool, reference: str) -> str:
    subject = f"Pre-training ({arm})" if pretrained else arm
    if not rows:
        return f"{subject}: nothing can be told yet, for nothing is paired with {reference}."
    sentences = []
    for verdict in (HURT, HELPED, UNKNOWN):  # bad news first
        found = [row for row in rows if row["verdict"] == verdict]
        if not found:
            continue
        amounts = _amounts(found, metric, len(rows) > 1)
        if verdict == UNKNOWN:
            verb = "helped" if pretrained else "was better"
            sentences.append(
                f"Whether {subject.replace('Pre-', 'pre-')} {verb} cannot be told {_why(found, metric)}: {amounts}."
            )
        else:
            sentences.append(f"{subject} {verdict if pretrained else OTHER[verdict]}: {amounts}; {_cases(found)}.")
    return " ".join(sentences)


def _why(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    if not any(learned(row, metric) for row in rows):
        return f"from networks that have not learned the task (mean {metric} below {LEARNED}; {_cases(rows)})"
    return f"with so few cases ({_cases(rows)})"


def _cases(rows: Sequence[Mapping[str, Any]]) -> str:
    """On how many test cases and data sets, in words."""
    cases, datasets = (
        sorted(set(numbers)) for numbers in zip(*((r["cases"], len(r["datasets"])) for r in rows), strict=True)
    )
    number = counted(cases[0], "test case") if len(cases) == 1 else f"{cases[0]:,} to {cases[-1]:,} test cases"
    return number if datasets == [1] else f"{number} of {counted(datasets[-1], 'data set')}"


def _amounts(rows: Sequence[Mapping[str, Any]], metric: str, several: bool) -> str:
    """By how much, for each number of labelled cases; what the numbers are is said with the first one."""
    texts = []
    for n, row in enumerate(rows):
        sure = f"{CONFIDENCE * 100:.0f} % interval " if n == 0 else ""
        given = np.isfinite(row["low"]) and np.isfinite(row["high"])
        text = f"mean {metric} " * (n == 0) + change(row["difference"], metric)
        text += f" with {labels(row['labelled'])}" * several
        texts.append(
            text + (f" ({sure}{interval(row, metric)})" if given else " (no interval: one case in some data set)")
        )
    return ", ".join(texts)


def change(value: float, metric: str) -> str:
    """A difference with its sign: shares to a thousandth, distances to a hundredth of a millimetre."""
    if not np.isfinite(value):
        return "unknown"
    text = f"{value:+.2f}" if lower_is_better(metric) else f"{value:+.3f}"
    if not float(text):
        text = text[1:]  # no sign of nothing
    if lower_is_better(metric):
        text += " mm"
    return text.replace("-", "\N{MINUS SIGN}")


def amount(value: float, metric: str) -> str:
    """A score."""
    if not np.isfinite(value):
        return "\N{EN DASH}"
    return f"{value:.2f}" if lower_is_better(metric) else f"{value:.3f}"


def interval(row: Mapping[str, Any], metric: str) -> str:
    """The interval of a row, as in +0.010 to +0.020; a dash where there is none."""
    if not (np.isfinite(row["low"]) and np.isfinite(row["high"])):
        return "no interval"
    return f"{change(row['low'], metric)} to {change(row['high'], metric)}"


def p_value(p: float) -> str:
    """p = 0.031, or p < 0.001."""
    if not np.isfinite(p):
        return "p unknown"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def cautions(rows: Sequence[Mapping[str, Any]], reference: str) -> list[str]:
    """What a hurried reader of the headline has to know as well."""
    lines = []
    if rows and max(row["seeds"] for row in rows) < 2:
        lines.append(
            "Every training ran with one seed. The intervals are about the test cases; how much another run with other random "
            "numbers would differ, they do not know."
        )
    lines += [
        f"{row['arm']} with {labels(row['labelled'])}: the difference to {reference} changes more with the random numbers "
        f"(standard deviation {row['seed_deviation']:.3f} over {row['seeds']} seeds) than it is large."
        for row in rows
        if row["verdict"] != UNKNOWN and row["seed_deviation"] > abs(row["difference"])  # never, where it is NaN
    ]
    return lines
