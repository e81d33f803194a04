"""Two arms on the same cases: what paired scores say, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
Scores = Sequence[float] | Sequence[Sequence[float]] | np.ndarray


def compare(scratch: Scores, finetuned: Scores) -> dict[str, Any]:
    """Summarise paired scores (Dice, larger is better) as a dict of plain numbers.

    scratch, finetuned: [cases], or [seeds, cases] when every run was repeated with other seeds; the same cases in the
    same order. Seeds are averaged per case first: repeated runs on one case are not independent cases. A case whose
    score is NaN in any run counts nowhere. The interval is the paired t-interval of the mean difference over the cases;
    it needs two of them, otherwise it is NaN.

    Keys: n, seeds, left_out, scratch_mean, scratch_std, finetuned_mean, finetuned_std, difference, difference_low,
    difference_high, better (cases with a higher fine-tuned score), seed_std (of the mean difference over the seeds).
    std is over cases, with n - 1. Raises ValueError when the shapes differ or no complete case is left.
    """
    pair = [np.atleast_2d(np.asarray(scores, dtype=float)) for scores in (scratch, finetuned)]
    if pair[0].shape != pair[1].shape or pair[0].ndim != 2:
        raise ValueError(
            f"Paired scores need equal shapes [cases] or [seeds, cases], found {np.shape(scratch)} and "
            f"{np.shape(finetuned)}. Give the same cases in the same order."
        )
    complete = np.isfinite(pair[0]).all(axis=0) & np.isfinite(pair[1]).all(axis=0)
    if not complete.any():
        raise ValueError(f"None of the {complete.size} cases has a score in every run, so there is nothing to compare.")
    first, second = (scores[:, complete] for scores in pair)
    differences = (second - first).mean(axis=0)
    low, high = interval_of_mean(differences)
    return {
        "n": int(complete.sum()),
        "seeds": len(first),
        "left_out": int((~complete).sum()),
        "scratch_mean": float(first.mean()),
        "scratch_std": deviation(first.mean(axis=0)),
        "finetuned_mean": float(second.mean()),
        "finetuned_std": deviation(second.mean(axis=0)),
        "difference": float(differences.mean()),
        "difference_low": low,
        "difference_high": high,
        "better": int((differences > 0).sum()),
        "seed_std": deviation((second - first).mean(axis=1)),
    }


def interval_of_mean(values: np.ndarray) -> tuple[float, float]:
    """The 95 % t-interval of the mean of `values` [cases]; NaN for fewer than two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    return float(low), float(high)


def deviation(values: np.ndarray) -> float:
    """Standard deviation with n - 1; NaN for fewer than two values."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")
