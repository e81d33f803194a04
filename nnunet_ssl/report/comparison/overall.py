"""The difference to the reference over all data sets, and what it allows to say: helped, hurt, or cannot be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from nnunet_ssl.report.comparison.differences import lower_is_better, with_holm
from nnunet_ssl.report.comparison.paired import CONFIDENCE, deviation
from nnunet_ssl.report.comparison.significance import signed_rank

HELPED, HURT, UNKNOWN = "helped", "hurt", "cannot be told"
LEVEL = 1 - CONFIDENCE
LEARNED = 0.1  # mean share below which no network has learned the task, and differences show nothing


def mean_over_groups(groups: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """The mean of the groups' means, each counting the same, and its 95 % interval over their cases.

    The groups (data sets) are taken as they are: the interval is about their cases, not about other data sets. Standard errors
    add up as those of independent means, degrees of freedom as Welch and Satterthwaite have them; of one group it is the
    t-interval. NaN limits where a group has fewer than two cases.
    """
    means = np.array([group.mean() for group in groups])
    mean = float(means.mean())
    if any(len(group) < 2 for group in groups):
        return mean, float("nan"), float("nan")
    parts = np.array([group.var(ddof=1) / len(group) for group in groups]) / len(groups) ** 2
    if parts.sum() == 0:
        return mean, mean, mean
    freedom = parts.sum() ** 2 / sum(p**2 / (len(g) - 1) for p, g in zip(parts, groups, strict=True))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * np.sqrt(parts.sum()))
    return mean, mean - half, mean + half


def overall(
    differences: Sequence[Mapping[str, Any]], labelled: Sequence[str], arms: Sequence[str], metric: str
) -> list[dict[str, Any]]:
    """Per number of labelled cases and arm: the mean difference over data sets, with verdict.

    differences: rows of `all_differences`. Data sets without a pair are left out, and counted by `datasets`.
    """
    rows = []
    for number in labelled:
        own = []
        for arm in arms:
            found = [r for r in differences if r["labelled"] == number and r["arm"] == arm and r["cases"]]
            if found:
                own.append({"labelled": number, "arm": arm, **_over_datasets(found, metric)})
        rows += [{**row, "verdict": verdict_of(row, metric)} for row in with_holm(own)]
    return rows


def _over_datasets(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    groups = [np.array(list(row["by_case"].values()), dtype=float) for row in rows]
    mean, low, high = mean_over_groups(groups)
    seeds = set.intersection(*(set(row["by_seed"]) for row in rows))
    by_seed = np.array([np.mean([row["by_seed"][seed] for row in rows]) for seed in sorted(seeds)])
    sign = -1 if lower_is_better(metric) else 1
    return {
        **{name: float(np.mean([row[name] for row in rows])) for name in ("reference_mean", "arm_mean")},
        "difference": mean,
        "low": low,
        "high": high,
        "p": signed_rank(groups),
        "datasets": [row["dataset"] for row in rows],
        "datasets_better": sum(sign * row["difference"] > 0 for row in rows),
        "cases": sum(row["cases"] for row in rows),
        **{name: sum(row[name] for row in rows) for name in ("better", "worse", "equal")},
        "seeds": len(seeds),
        "seed_deviation": deviation(by_seed),
    }


def learned(row: Mapping[str, Any], metric: str) -> bool:
    """Whether one of the two arms of a row has learned the task at all; a distance does not tell, and counts as learned."""
    return lower_is_better(metric) or max(row["reference_mean"], row["arm_mean"]) >= LEARNED


def verdict_of(row: Mapping[str, Any], metric: str) -> str:
    """HELPED or HURT where interval and corrected test agree that there is a difference, else UNKNOWN.

    Of networks that have both learned nothing, none is better.
    """
    low, high = (row["low"], row["high"])
    if not learned(row, metric):
        return UNKNOWN
    if not (np.isfinite(low) and np.isfinite(high) and row["p_holm"] < LEVEL):
        return UNKNOWN
    if low > 0:
        return HURT if lower_is_better(metric) else HELPED
    if high < 0:
        return HELPED if lower_is_better(metric) else HURT
    return UNKNOWN
