"""Means of the arms, and their average ranks over data sets with bootstrapped intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from nnunet_ssl.report.comparison.differences import UNIT, lower_is_better, part
from nnunet_ssl.report.comparison.paired import CONFIDENCE, deviation

RESAMPLES = 2000
SEED = 20260


def common_cases(cases: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """[cases, arms] of a `part`: the runs that all of these arms have, averaged per case."""
    here = cases[cases["arm"].isin(arms) & cases["value"].notna()]
    table = here.pivot_table(index=UNIT, columns="arm", values="value").reindex(columns=list(arms))
    return table.dropna().groupby(level="case").mean()


def average_ranks(tables: Mapping[str, np.ndarray], smaller_is_better: bool = False) -> dict[str, Any]:
    """Ranks of arms per data set, 1 for the best, and their means over data sets with 95 % bootstrap intervals.

    tables: data set -> [cases, arms]. Arms with equal means share the mean of their ranks. The bootstrap draws cases anew within
    every data set, the same for all arms (they are paired): it says how much the ranks hang on these cases; the data sets stay.
    """
    sign = 1 if smaller_is_better else -1
    own = {name: _ranks(sign * table.mean(axis=0)) for name, table in tables.items()}
    generator = np.random.default_rng(SEED)
    drawn = []
    for table in tables.values():
        chosen = generator.integers(0, len(table), (RESAMPLES, len(table)))
        # Counts times values, and not table[chosen]: that would be [resamples, cases, arms].
        counts = np.apply_along_axis(np.bincount, 1, chosen, minlength=len(table))
        drawn.append(_ranks(sign * (counts @ table) / len(table)))
    means = np.mean(drawn, axis=0)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, (tail, 100 - tail), axis=0)
    return {
        "mean": np.mean(list(own.values()), axis=0).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "by_dataset": {name: ranks.tolist() for name, ranks in own.items()},
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    return stats.rankdata(np.round(values, 10), axis=-1)


def all_ranks(
    cases: pd.DataFrame, datasets: Sequence[str], labelled: Sequence[str], arms: Sequence[str], metric: str
) -> list[dict[str, Any]]:
    """Average ranks per number of labelled cases; data sets that lack scores of an arm are left out, and named.

    Arms without any score at that number take no part.
    """
    rows = []
    for number in labelled:
        present = [arm for arm in arms if not cases[(cases["labelled"] == number) & (cases["arm"] == arm)].empty]
        if len(present) < 2:
            continue
        tables = {dataset: common_cases(part(cases, dataset, number), present) for dataset in datasets}
        full = {dataset: table.to_numpy(dtype=float) for dataset, table in tables.items() if len(table)}
        missing = [dataset for dataset in datasets if dataset not in full]
        row: dict[str, Any] = {"labelled": number, "arms": present, "datasets": list(full), "left_out": missing}
        rows.append(row | (average_ranks(full, lower_is_better(metric)) if full else {}))
    return rows


def all_means(cases: pd.DataFrame, scores: pd.DataFrame, metric: str) -> list[dict[str, Any]]:
    """Per data set, number of labelled cases and arm: mean and deviation over cases, runs averaged per case; and by structure.

    structures: nnU-Net's mean, over the cases in which a structure has a value; foreground_mean: their mean. Where a structure is
    absent from some cases, that differs from `mean`, which averages within each case first, because only cases can be paired.
    """
    rows = []
    names = ["dataset", "labelled", "arm"]
    finite = scores[(scores["metric"] == metric) & np.isfinite(scores["value"].astype(float))]
    by_structure: dict[tuple[str, ...], dict[str, float]] = {}
    for (*key, structure), value in finite.groupby([*names, "structure"], sort=False)["value"].mean().items():
        by_structure.setdefault(tuple(key), {})[str(structure)] = float(value)
    for key, group in cases.groupby(names, sort=False):
        values = group.groupby("case")["value"].mean().dropna().to_numpy(dtype=float)
        structures = by_structure.get(key, {})
        runs = group.groupby(["fold", "seed"])["value"].mean()
        rows.append(
            {
                **dict(zip(names, key, strict=True)),
                "mean": float(values.mean()) if len(values) else float("nan"),
                "deviation": deviation(values),
                "cases": len(values),
                "runs": len(runs),
                "by_seed": group.groupby("seed")["value"].mean().to_dict(),
                "structures": structures,
                "foreground_mean": float(np.mean(list(structures.values()))) if structures else float("nan"),
            }
        )
    return rows
