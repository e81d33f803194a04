from __future__ import annotations

import math

import numpy as np
import pytest

from nnunet_ssl.report.comparison.paired import compare

T_975 = {3: 3.182446, 7: 2.364624, 11: 2.200985}  # 97.5 % quantiles of Student's t, from a printed table


def slow_compare(scratch: list[float], finetuned: list[float]) -> dict[str, float]:
    n = len(scratch)
    differences = [b - a for a, b in zip(scratch, finetuned, strict=True)]
    mean = sum(differences) / n
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    half = T_975[n - 1] * deviation / math.sqrt(n)
    return {"difference": mean, "difference_low": mean - half, "difference_high": mean + half}


@pytest.mark.parametrize("n", [4, 8, 12])
def test_agrees_with_the_formula(n: int) -> None:
    generator = np.random.default_rng(n)
    scratch = generator.uniform(0, 1, n).tolist()
    finetuned = generator.uniform(0, 1, n).tolist()
    row = compare(scratch, finetuned)
    for key, value in slow_compare(scratch, finetuned).items():
        assert row[key] == pytest.approx(value, abs=1e-6)
    assert row["n"] == n
    assert row["better"] == sum(b > a for a, b in zip(scratch, finetuned, strict=True))
    assert row["scratch_mean"] == pytest.approx(sum(scratch) / n)
    assert row["finetuned_std"] == pytest.approx(np.std(finetuned, ddof=1))


def test_repeated_runs_are_not_more_cases() -> None:
    scratch, finetuned = np.array([0.5, 0.6, 0.7]), np.array([0.6, 0.65, 0.8])
    once = compare(scratch, finetuned)
    thrice = compare(np.stack([scratch] * 3), np.stack([finetuned] * 3))
    assert (thrice["n"], thrice["seeds"], thrice["seed_std"]) == (3, 3, 0)
    for key in ("difference", "difference_low", "difference_high", "scratch_std"):
        assert thrice[key] == pytest.approx(once[key])
    spread = compare([[0.5, 0.6], [0.5, 0.6]], [[0.6, 0.7], [0.5, 0.6]])
    assert spread["seed_std"] == pytest.approx(0.1 / math.sqrt(2))


def test_cases_without_a_score_count_nowhere() -> None:
    row = compare([0.5, float("nan"), 0.7, 0.1], [0.6, 0.9, 0.9, float("nan")])
    assert (row["n"], row["left_out"]) == (2, 2)
    assert row["difference"] == pytest.approx(0.15)


def test_refuses_what_is_not_paired() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        compare([0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="None of the 1 cases"):
        compare([float("nan")], [0.5])
