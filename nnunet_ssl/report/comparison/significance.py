"""Tests of paired differences: Wilcoxon's signed ranks, in one data set or several, and Holm's correction for several arms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

DECIMALS = 10  # differences that agree so far are ties: 0.85 - 0.84 and 0.75 - 0.74 differ as floats alone
EXACT = 13  # differences up to which all signs are tried where scipy's table does not hold (ties, several data sets)


def signed_rank(groups: Sequence[np.ndarray]) -> float:
    """Two-sided p of the hypothesis that differences [cases] lie around 0 in every group (data set).

    One group: Wilcoxon's signed-rank test (scipy's; exact up to 50 cases without ties). Several: ranks are given within each
    group and added up with van Elteren's weights 1 / (n + 1), so that a large group cannot outvote the others; exact up to 13
    cases, else by the normal approximation. Differences of 0 are dropped, as Wilcoxon did; 1 where none is left, NaN
    without any difference.
    """
    rounded = [np.round(np.asarray(group, dtype=float), DECIMALS) for group in groups]
    if not any(group.size for group in rounded):
        return float("nan")
    signed = [_weighted_ranks(group[group != 0]) for group in rounded if np.any(group != 0)]
    if sum(map(len, signed)) < 2:
        return 1.0
    joined = np.concatenate(signed)
    if len(joined) <= EXACT:
        # Flips the sign of every rank in all 2^n ways.
        test = stats.permutation_test(
            (joined,), np.sum, permutation_type="samples", n_resamples=2**EXACT + 1, vectorized=True
        )
        return float(min(1.0, test.pvalue))
    if len(signed) == 1:
        differences = next(group[group != 0] for group in rounded if np.any(group != 0))
        return float(stats.wilcoxon(differences, zero_method="wilcox").pvalue)
    return float(2 * stats.norm.sf(abs(joined.sum()) / np.sqrt((joined**2).sum())))


def _weighted_ranks(differences: np.ndarray) -> np.ndarray:
    ranks = stats.rankdata(np.abs(differences))  # ties share the mean of their ranks
    return np.sign(differences) * ranks / (len(differences) + 1)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for being several (Holm, 1979), in their order; NaN stays NaN and does not count as one."""
    p = np.asarray(values, dtype=float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    corrected = p.copy()
    steps = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps * p[order]))
    return [float(value) for value in corrected]
