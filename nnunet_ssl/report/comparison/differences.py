"""Scores per case, and what an arm gains or loses on the same cases, folds and seeds.

Kept apart: how sure a difference is with these cases (an interval over cases, after runs were averaged per case: repeated
runs on one case are no new cases), and how much it changes with the random numbers (deviation over seeds) and with the training
cases (deviation over folds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nnunet_ssl.report.comparison.folder import KEYS
from nnunet_ssl.report.comparison.paired import deviation, interval_of_mean
from nnunet_ssl.report.comparison.significance import DECIMALS, holm, signed_rank

UNIT = ["fold", "seed", "case"]
LOWER_IS_BETTER = ("HD", "ASSD", "MASD")


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a distance [mm]; else it is a share from 0 to 1, where more is better."""
    return metric.upper().startswith(LOWER_IS_BETTER)


def case_scores(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """KEYS, case, value: the mean over structures (or regions) of every case of every cell.

    As in nnU-Net's foreground mean, a structure without a value (absent from truth and prediction) is left out of it; a case
    without any value is NaN. Infinite distances, to a structure that is missing in truth or prediction, count as undefined.
    """
    chosen = scores[scores["metric"] == metric]
    chosen = chosen.assign(value=chosen["value"].astype(float).where(np.isfinite(chosen["value"].astype(float))))
    return chosen.groupby([*KEYS, "case"], sort=False, as_index=False)["value"].mean()


def part(cases: pd.DataFrame, dataset: str, labelled: str) -> pd.DataFrame:
    """The case scores of one data set with one number of labelled cases."""
    return cases[(cases["dataset"] == dataset) & (cases["labelled"] == labelled)]


def pair(cases: pd.DataFrame, arm: str, reference: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """UNIT, reference, arm, difference of what both arms have in a `part`, and how many units were left out, by reason."""
    first, second = (cases.loc[cases["arm"] == name, [*UNIT, "value"]] for name in (reference, arm))
    both = first.merge(second, on=UNIT, how="outer", suffixes=("_reference", "_arm"), indicator=True)
    paired = both[both["_merge"] == "both"]
    defined = paired[paired[["value_reference", "value_arm"]].notna().all(axis=1)]
    units = defined.rename(columns={"value_reference": "reference", "value_arm": "arm"})[[*UNIT, "reference", "arm"]]
    units["difference"] = units["arm"] - units["reference"]
    left_out = {
        "only_reference": int((both["_merge"] == "left_only").sum()),
        "only_arm": int((both["_merge"] == "right_only").sum()),
        "undefined": len(paired) - len(defined),
    }
    return units.reset_index(drop=True), left_out


def per_case(units: pd.DataFrame) -> pd.Series:
    """The difference of every case, its runs averaged."""
    return units.groupby("case")["difference"].mean()


def over_seeds(units: pd.DataFrame) -> pd.Series:
    """The mean difference per seed, over the cases and folds that every seed has."""
    table = units.pivot_table(index=["fold", "case"], columns="seed", values="difference")
    return table.dropna().mean(axis=0)


def over_folds(units: pd.DataFrame) -> pd.Series:
    """The mean difference per fold, runs averaged per case; where folds test other cases, their spread is in it."""
    return units.groupby(["fold", "case"])["difference"].mean().groupby(level="fold").mean()


def describe(units: pd.DataFrame, metric: str) -> dict[str, Any]:
    """What paired units say, as plain numbers; NaN where there is too little for one.

    difference: arm minus reference, averaged over cases; low, high: its 95 % t-interval over cases; better, worse, equal: cases;
    p: Wilcoxon's signed-rank test over cases; seed_deviation, fold_deviation: standard deviations of the mean difference.
    """
    by_case = per_case(units)
    values = by_case.to_numpy(dtype=float)
    low, high = interval_of_mean(values)
    gains = np.round(-values if lower_is_better(metric) else values, DECIMALS)
    mean = units.groupby("case")[["reference", "arm"]].mean().mean() if len(values) else {}
    seeds, folds = (
        over(units).dropna().to_numpy() if len(values) else np.array([]) for over in (over_seeds, over_folds)
    )
    return {
        "cases": len(values),
        "folds": int(units["fold"].nunique()),
        "seeds": int(units["seed"].nunique()),
        "reference_mean": float(mean.get("reference", np.nan)),
        "arm_mean": float(mean.get("arm", np.nan)),
        "difference": float(values.mean()) if len(values) else float("nan"),
        "low": low,
        "high": high,
        "better": int((gains > 0).sum()),
        "worse": int((gains < 0).sum()),
        "equal": int((gains == 0).sum()),
        "p": signed_rank([values]),
        "seed_deviation": deviation(seeds),
        "fold_deviation": deviation(folds),
        "by_seed": over_seeds(units).to_dict() if len(values) else {},
        "by_case": by_case.to_dict(),
    }


def all_differences(
    cases: pd.DataFrame,
    datasets: Sequence[str],
    labelled: Sequence[str],
    arms: Sequence[str],
    reference: str,
    metric: str,
) -> list[dict[str, Any]]:
    """A row of `describe` per data set, number of labelled cases and arm that can be paired, with Holm's correction over arms."""
    rows: list[dict[str, Any]] = []
    for dataset in datasets:
        for number in labelled:
            here = part(cases, dataset, number)
            own = []
            for arm in (name for name in arms if name != reference):
                units, left_out = pair(here, arm, reference)
                if len(units) or left_out["only_arm"] or left_out["undefined"]:  # else the arm has no scores here
                    names = {"dataset": dataset, "labelled": number, "arm": arm}
                    own.append({**names, **describe(units, metric), "left_out": left_out})
            rows += with_holm(own)
    return rows


def with_holm(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of several arms, which are one family of hypotheses, with `p_holm` beside `p`."""
    corrected = holm([row["p"] for row in rows])
    return [{**row, "p_holm": p} for row, p in zip(rows, corrected, strict=True)]
