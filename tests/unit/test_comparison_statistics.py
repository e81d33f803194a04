"""Every statistic of a comparison against a slow or a library twin; and ties, absent structures, one of anything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunet_ssl.report.comparison.differences import (
    all_differences,
    case_scores,
    describe,
    over_folds,
    over_seeds,
    pair,
    part,
)
from nnunet_ssl.report.comparison.folder import COLUMNS
from nnunet_ssl.report.comparison.overall import HELPED, HURT, UNKNOWN, mean_over_groups, overall, verdict_of
from nnunet_ssl.report.comparison.ranks import all_means, all_ranks, average_ranks, common_cases
from nnunet_ssl.report.comparison.significance import holm, signed_rank
from nnunet_ssl.report.comparison.words import cautions, headline

NAN = float("nan")


def table(*rows: tuple, metric: str = "Dice") -> pd.DataFrame:
    """Scores from (arm, fold, seed, case, structure, value); one data set, all labels."""
    full = [["Dataset001_A", arm, fold, seed, "all", case, s, metric, v] for arm, fold, seed, case, s, v in rows]
    return pd.DataFrame(full, columns=COLUMNS).astype({"value": float})


def made_up(datasets=("Dataset001_A",), arms=("scratch", "mae"), folds="01", seeds="01", cases=6, gain=0.02, seed=0):
    random = np.random.default_rng(seed)
    rows = [
        [d, arm, fold, s, "all", f"{fold}{case}", structure, "Dice", random.uniform(0.3, 0.9) + gain * arms.index(arm)]
        for d in datasets
        for fold in folds
        for s in seeds
        for case in range(cases)
        for structure in ("a", "b")
        for arm in arms
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def differences_of(scores, metric="Dice", arms=("scratch", "mae")):
    datasets = list(scores["dataset"].unique())
    return all_differences(case_scores(scores, metric), datasets, ["all"], list(arms), "scratch", metric)


# --- Wilcoxon and Holm


def slow_signed_rank(groups) -> float:
    """All signs in turn: how many give a sum at least as far from 0."""
    signed = []
    for group in groups:
        kept = [d for d in group if d != 0]
        for d in kept:
            smaller = sum(abs(e) < abs(d) - 1e-12 for e in kept)
            equal = sum(abs(abs(e) - abs(d)) <= 1e-12 for e in kept)
            signed.append(math.copysign((smaller + (equal + 1) / 2) / (len(kept) + 1), d))
    found = abs(sum(signed))
    sums = [
        abs(sum(s * r for s, r in zip(signs, signed, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(signed))
    ]
    return sum(total >= found - 1e-9 for total in sums) / len(sums)


@pytest.mark.parametrize(
    "groups",
    [
        [[0.01, 0.02, -0.005, 0.03, 0.04]],
        [[0.01, 0.01, -0.01, 0.02, 0.02, 0.0]],  # ties and a zero
        [[0.01, 0.02, 0.03], [0.2, -0.1, 0.3, 0.4]],  # two data sets
        [[0.01], [0.02, -0.01]],
        [[-0.3]],
    ],
)
def test_signed_ranks_agree_with_all_signs_in_turn(groups):
    assert signed_rank([np.array(g) for g in groups]) == pytest.approx(slow_signed_rank(groups))


@pytest.mark.parametrize("n", [8, 14, 30, 80])
def test_signed_ranks_of_one_data_set_are_scipys(n):
    values = np.random.default_rng(n).normal(0.2, 1, n)
    assert signed_rank([values]) == pytest.approx(stats.wilcoxon(values).pvalue, abs=1e-9)


def test_signed_ranks_of_several_data_sets_agree_with_random_signs():
    random = np.random.default_rng(0)
    groups = [random.normal(0.15, 1, 40), random.normal(0.3, 5, 15)]
    ranks = [np.sign(g) * stats.rankdata(abs(g)) / (len(g) + 1) for g in groups]
    joined = np.concatenate(ranks)
    flipped = (random.choice([-1, 1], (20000, len(joined))) * joined).sum(axis=1)
    twin = np.mean(abs(flipped) >= abs(joined.sum()))
    assert signed_rank(groups) == pytest.approx(twin, abs=0.012)
    # Scale plays no part: the second data set's large differences do not count more.
    assert signed_rank([groups[0], groups[1] * 1000]) == pytest.approx(signed_rank(groups))


def test_signed_ranks_at_the_edges():
    assert math.isnan(signed_rank([np.array([])]))
    assert signed_rank([np.zeros(5)]) == 1.0
    assert signed_rank([np.array([0.1])]) == 1.0  # one case shows nothing
    assert signed_rank([np.full(5, 0.01)]) == pytest.approx(2 / 2**5)  # all tied: not the normal approximation's 0.025
    # 0.01 and -0.01, but for their last digits: ties, and not ranks of rounding errors.
    floats = np.array([0.85 - 0.84, 0.65 - 0.66, 0.65 - 0.66, 0.85 - 0.84, 0.29 - 0.28, 0.29 - 0.28])
    assert signed_rank([floats]) == signed_rank([np.round(floats, 4)]) == 0.6875


def test_holm_agrees_with_the_definition():
    p = [0.01, 0.04, 0.03, 0.005, NAN]
    order = sorted((v, n) for n, v in enumerate(p) if not math.isnan(v))
    slow, largest = {}, 0.0
    for step, (value, n) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - step) * value))
        slow[n] = largest
    corrected = holm(p)
    assert corrected[:4] == pytest.approx([slow[n] for n in range(4)])
    assert math.isnan(corrected[4])
    assert holm([0.03]) == [0.03]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


# --- cases, pairs, spread


def test_a_case_is_the_mean_of_the_structures_that_it_has():
    scores = table(
        ("mae", "0", "0", "x", "a", 0.8), ("mae", "0", "0", "x", "b", NAN),  # absent from truth and prediction
        ("mae", "0", "0", "y", "a", 0.6), ("mae", "0", "0", "y", "b", 0.0),  # predicted though absent
        ("mae", "0", "0", "z", "a", NAN), ("mae", "0", "0", "z", "b", NAN),
    )  # fmt: skip
    values = case_scores(scores, "Dice").set_index("case")["value"]
    assert values["x"] == 0.8
    assert values["y"] == 0.3
    assert math.isnan(values["z"])
    row = all_means(case_scores(scores, "Dice"), scores, "Dice")[0]
    assert (row["cases"], row["mean"]) == (2, pytest.approx(0.55))
    # nnU-Net's own means: first over cases, then over structures.
    assert row["structures"] == {"a": pytest.approx(0.7), "b": 0.0}
    assert row["foreground_mean"] == pytest.approx(0.35)
    assert case_scores(table(("mae", "0", "0", "x", "a", math.inf), metric="HD95"), "HD95")["value"].isna().all()


def test_foreground_mean_is_that_of_nnunet(tmp_path):
    """The same scores through nnU-Net's own arithmetic, absent structures among them."""
    scores = made_up(folds="0", seeds="0", arms=("mae",))
    scores.loc[[1, 4], "value"] = NAN
    per_label = [np.nanmean(scores.loc[scores["structure"] == s, "value"]) for s in ("a", "b")]
    row = all_means(case_scores(scores, "Dice"), scores, "Dice")[0]
    assert row["foreground_mean"] == pytest.approx(np.mean(per_label))


def slow_difference(scores: pd.DataFrame) -> dict[str, float]:
    """With dictionaries and loops."""
    value: dict[tuple, list[float]] = {}
    for row in scores.itertuples():
        value.setdefault((row.arm, row.fold, row.seed, row.case), []).append(row.value)
    means = {key: sum(v) / len(v) for key, v in value.items()}
    units = {
        k[1:]: means[k] - means[("scratch", *k[1:])] for k in means if k[0] == "mae" and ("scratch", *k[1:]) in means
    }
    cases = sorted({case for _, _, case in units})
    by_case = [np.mean([d for (_, _, c), d in units.items() if c == case]) for case in cases]
    seeds = sorted({seed for _, seed, _ in units})
    full = [(f, c) for f, c in {(f, c) for f, _, c in units} if all((f, seed, c) in units for seed in seeds)]
    by_seed = [np.mean([units[f, seed, c] for f, c in full]) for seed in seeds] if full else []
    return {
        "difference": float(np.mean(by_case)),
        "seed_deviation": float(np.std(by_seed, ddof=1)) if by_seed else NAN,
        "cases": len(cases),
    }


@pytest.mark.parametrize("lost", [[], [("mae", "0", "1")], [("scratch", "1", "0"), ("mae", "0", "1")]])
def test_paired_differences_agree_with_loops(lost):
    """Also with failed cells: only what both arms have is paired, and seeds are compared on what all of them have."""
    scores = made_up()
    for arm, fold, seed in lost:
        scores = scores[~((scores["arm"] == arm) & (scores["fold"] == fold) & (scores["seed"] == seed))]
    (row,) = differences_of(scores)
    twin = slow_difference(scores)
    assert row["difference"] == pytest.approx(twin["difference"])
    assert row["cases"] == twin["cases"]
    if len(lost) < 2:  # else no fold has both seeds
        assert row["seed_deviation"] == pytest.approx(twin["seed_deviation"])
    else:
        assert math.isnan(row["seed_deviation"])
    missing = {"only_reference": 6 * sum(arm == "mae" for arm, *_ in lost), "undefined": 0}
    assert row["left_out"] == {**missing, "only_arm": 6 * sum(arm == "scratch" for arm, *_ in lost)}


def test_the_interval_is_over_cases_and_repeated_runs_are_no_new_cases():
    scores = made_up(seeds="0")
    again = pd.concat([scores, scores.assign(seed="1"), scores.assign(seed="2")])
    (once,), (thrice,) = differences_of(scores), differences_of(again)
    for key in ("cases", "difference", "low", "high", "p"):
        assert thrice[key] == pytest.approx(once[key])
    assert thrice["seed_deviation"] == pytest.approx(0)
    assert math.isnan(once["seed_deviation"])  # one seed
    values = np.array(list(once["by_case"].values()))
    twin = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (once["low"], once["high"]) == pytest.approx((twin.low, twin.high))


def test_spread_over_seeds_and_folds_is_kept_apart():
    """Seeds that differ by 0.1 in all folds: no spread over folds; and the other way round."""
    rows = [
        (arm, fold, seed, case, "a", 0.5 + (arm == "mae") * 0.1 * float(seed))
        for arm in ("scratch", "mae")
        for fold in "01"
        for seed in "01"
        for case in "xyz"
    ]
    units, _ = pair(part(case_scores(table(*rows), "Dice"), "Dataset001_A", "all"), "mae", "scratch")
    row = describe(units, "Dice")
    assert row["seed_deviation"] == pytest.approx(0.1 / math.sqrt(2))
    assert row["fold_deviation"] == pytest.approx(0)
    turned = describe(units.rename(columns={"fold": "seed", "seed": "fold"}), "Dice")
    assert turned["fold_deviation"] == pytest.approx(0.1 / math.sqrt(2))
    assert turned["seed_deviation"] == pytest.approx(0)
    assert over_seeds(units).tolist() == pytest.approx([0, 0.1])
    assert over_folds(units).tolist() == pytest.approx([0.05, 0.05])


def test_undefined_scores_are_paired_with_nothing_and_counted():
    scores = table(
        ("scratch", "0", "0", "x", "a", 0.5), ("mae", "0", "0", "x", "a", 0.7),
        ("scratch", "0", "0", "y", "a", NAN), ("mae", "0", "0", "y", "a", 0.7),
        ("scratch", "0", "0", "z", "a", NAN), ("mae", "0", "0", "z", "a", NAN),
    )  # fmt: skip
    (row,) = differences_of(scores)
    assert (row["cases"], row["difference"], row["better"]) == (1, pytest.approx(0.2), 1)
    assert row["left_out"] == {"only_reference": 0, "only_arm": 0, "undefined": 2}
    assert math.isnan(row["low"])
    assert row["p"] == 1.0


def test_small_distances_are_better():
    pairs = {"w": (5.0, 4.0), "x": (5.0, 3.0), "y": (5.0, 6.0), "z": (5.0, 5.0)}
    rows = [(arm, "0", "0", case, "a", pairs[case][n]) for case in pairs for n, arm in enumerate(("scratch", "mae"))]
    scores = table(*rows, metric="HD95")
    (row,) = differences_of(scores, "HD95")
    assert (row["better"], row["worse"], row["equal"]) == (2, 1, 1)
    (ranks,) = all_ranks(case_scores(scores, "HD95"), ["Dataset001_A"], ["all"], ["scratch", "mae"], "HD95")
    assert ranks["mean"] == [2.0, 1.0]  # means 5 and 4.5 mm
    sure = {"reference_mean": 5.0, "arm_mean": 3.5, "low": -2.0, "high": -1.0, "p_holm": 0.01}
    assert (verdict_of(sure, "HD95"), verdict_of(sure, "Dice")) == (HELPED, HURT)


# --- over data sets


def test_mean_over_data_sets_agrees_with_the_formula_and_with_a_bootstrap():
    random = np.random.default_rng(1)
    groups = [random.normal(0.02, 0.05, 60), random.normal(0.05, 0.02, 40), random.normal(0, 0.1, 80)]
    mean, low, high = mean_over_groups(groups)
    assert mean == pytest.approx(np.mean([g.mean() for g in groups]))
    drawn = np.sort([np.mean([random.choice(g, len(g)).mean() for g in groups]) for _ in range(4000)])
    assert (low, high) == pytest.approx((drawn[100], drawn[3899]), abs=0.002)
    one = stats.ttest_1samp(groups[0], 0).confidence_interval(0.95)
    assert mean_over_groups(groups[:1])[1:] == pytest.approx((one.low, one.high))
    # Of two groups it is half of Welch's interval for the difference, with one of them turned round.
    two = stats.ttest_ind(groups[0], -groups[1], equal_var=False).confidence_interval(0.95)
    assert mean_over_groups(groups[:2])[1:] == pytest.approx((two.low / 2, two.high / 2))
    assert math.isnan(mean_over_groups([groups[0], np.array([0.1])])[1])


def test_overall_counts_every_data_set_the_same_and_seeds_that_all_have():
    scores = pd.concat([made_up(("Dataset001_A",), cases=4), made_up(("Dataset002_B",), cases=9, seed=5)])
    rows = differences_of(scores)
    (row,) = overall(rows, ["all"], ["mae"], "Dice")
    assert row["difference"] == pytest.approx(np.mean([r["difference"] for r in rows]))
    assert (row["cases"], row["seeds"], row["datasets"]) == (26, 2, ["Dataset001_A", "Dataset002_B"])
    by_seed = [np.mean([r["by_seed"][s] for r in rows]) for s in "01"]
    assert row["seed_deviation"] == pytest.approx(np.std(by_seed, ddof=1))
    without = scores[~((scores["dataset"] == "Dataset002_B") & (scores["seed"] == "1"))]
    (row,) = overall(differences_of(without), ["all"], ["mae"], "Dice")
    assert row["seeds"] == 1
    assert math.isnan(row["seed_deviation"])


def test_a_verdict_needs_interval_and_test():
    """Five cases that all gained: the interval excludes 0, but a signed-rank test cannot reach 0.05 with so few."""
    rows = [
        (arm, "0", "0", f"{n}", "a", 0.5 + (arm == "mae") * (0.1 + n / 100))
        for arm in ("scratch", "mae")
        for n in range(5)
    ]
    (row,) = overall(differences_of(table(*rows)), ["all"], ["mae"], "Dice")
    assert row["low"] > 0
    assert row["verdict"] == UNKNOWN
    rows += [(arm, "0", "0", f"{n}", "a", 0.5 + (arm == "mae") * 0.1) for arm in ("scratch", "mae") for n in (5, 6, 7)]
    (row,) = overall(differences_of(table(*rows)), ["all"], ["mae"], "Dice")
    assert row["verdict"] == HELPED


def test_of_networks_that_learned_nothing_none_is_better():
    rows = [(arm, "0", "0", f"{n}", "a", 0.02 + (arm == "mae") * 0.01) for arm in ("scratch", "mae") for n in range(9)]
    (row,) = overall(differences_of(table(*rows)), ["all"], ["mae"], "Dice")
    assert row["low"] > 0
    assert row["p_holm"] < 0.05
    assert row["verdict"] == UNKNOWN
    (said,) = headline([row], "Dice", ["scratch", "mae"], ["mae"], "scratch")
    assert "cannot be told from networks that have not learned the task (mean Dice below 0.1; 9 test cases)" in said


def test_holm_is_over_the_arms_of_one_number_of_labelled_cases():
    scores = made_up(arms=("scratch", "mae", "voco", "simmim"), gain=0.03)
    rows = differences_of(scores, arms=("scratch", "mae", "voco", "simmim"))
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p"] for row in rows]))
    assert any(row["p_holm"] > row["p"] for row in rows)


# --- ranks


def test_average_ranks_agree_with_counting_and_ties_share():
    tables = {
        "A": np.array([[0.5, 0.7, 0.6], [0.5, 0.9, 0.6]]),
        "B": np.array([[0.8, 0.8, 0.1]]),
        "C": np.array([[0.2, 0.2, 0.2], [0.4, 0.4, 0.4]]),
    }
    found = average_ranks(tables)
    slow = []
    for values in tables.values():
        means = values.mean(axis=0)
        slow.append([1 + sum(m > mine for m in means) + (sum(m == mine for m in means) - 1) / 2 for mine in means])
    assert list(found["by_dataset"].values()) == slow == [[3, 1, 2], [1.5, 1.5, 3], [2, 2, 2]]
    assert found["mean"] == pytest.approx(np.mean(slow, axis=0))
    assert average_ranks(tables) == found  # the seed is fixed
    assert average_ranks({"A": np.array([[0.1 + 0.2, 0.3]])})["mean"] == [1.5, 1.5]  # equal but for rounding
    lowest = average_ranks({"A": tables["A"]}, smaller_is_better=True)
    assert lowest["mean"] == [1, 3, 2]
    assert (lowest["low"], lowest["high"]) == (lowest["mean"], lowest["mean"])  # whichever cases are drawn


def test_rank_intervals_agree_with_a_loop_over_resamples():
    random = np.random.default_rng(4)
    tables = {name: random.normal([0.70, 0.71, 0.69], 0.05, (n, 3)) for name, n in (("A", 20), ("B", 35))}
    found = average_ranks(tables)
    means = []
    for _ in range(3000):
        ranks = [stats.rankdata(-t[random.integers(0, len(t), len(t))].mean(axis=0)) for t in tables.values()]
        means.append(np.mean(ranks, axis=0))
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    assert found["low"] == pytest.approx(low, abs=0.5)
    assert found["high"] == pytest.approx(high, abs=0.5)


def test_ranks_are_of_what_all_arms_have_and_say_what_is_missing():
    scores = made_up(("Dataset001_A", "Dataset002_B"), arms=("scratch", "mae"))
    b, mae = scores["dataset"] == "Dataset002_B", scores["arm"] == "mae"
    hard = (scores["case"] == "00") & (scores["arm"] == "scratch") & (scores["dataset"] == "Dataset001_A")
    cut = scores[~(b & mae)]  # mae has nothing on B
    (row,) = all_ranks(
        case_scores(cut, "Dice"), ["Dataset001_A", "Dataset002_B"], ["all"], ["scratch", "mae", "voco"], "Dice"
    )
    assert (row["arms"], row["datasets"], row["left_out"]) == (["scratch", "mae"], ["Dataset001_A"], ["Dataset002_B"])
    common = common_cases(
        part(case_scores(scores[~(b & mae) & ~hard], "Dice"), "Dataset001_A", "all"), ["scratch", "mae"]
    )
    assert "00" not in common.index
    (nothing,) = all_ranks(
        case_scores(scores[b == mae], "Dice"),
        ["Dataset001_A", "Dataset002_B"],
        ["all"],
        ["scratch", "mae"],
        "Dice",
    )
    assert "mean" not in nothing


def test_means_are_over_cases_after_runs():
    scores = made_up()
    row = next(r for r in all_means(case_scores(scores, "Dice"), scores, "Dice") if r["arm"] == "mae")
    own = scores[scores["arm"] == "mae"]
    by_case = own.groupby(["case", "seed"])["value"].mean().groupby("case").mean()
    assert row["mean"] == pytest.approx(by_case.mean())
    assert row["deviation"] == pytest.approx(by_case.std(ddof=1))
    assert (row["cases"], row["runs"]) == (12, 4)
    assert row["by_seed"]["1"] == pytest.approx(own[own["seed"] == "1"]["value"].mean())


# --- words


def row(arm: str, verdict: str, difference: float, labelled: str = "all", cases: int = 20, datasets: int = 1) -> dict:
    return {
        "arm": arm, "labelled": labelled, "verdict": verdict, "difference": difference, "low": difference - 0.01,
        "high": difference + 0.01, "p_holm": 0.01, "cases": cases, "datasets": ["x"] * datasets, "seeds": 2,
        "seed_deviation": 0.005, "reference_mean": 0.7, "arm_mean": 0.7 + difference,
    }  # fmt: skip


def test_the_answer_says_what_the_rows_say():
    arms = ["scratch", "nnunet", "mae", "voco"]
    rows = [
        row("mae", HURT, -0.02, "10"), row("mae", HELPED, 0.03, "50", cases=24), row("mae", UNKNOWN, 0.0, "all"),
        row("nnunet", HELPED, 0.05, datasets=3),
    ]  # fmt: skip
    mae, voco, nnunet = headline(rows, "Dice", arms, ["mae", "voco"], "scratch")  # pre-trained ones first
    assert mae == (
        "Pre-training (mae) hurt: mean Dice \N{MINUS SIGN}0.020 with 10 labelled cases (95 % interval \N{MINUS SIGN}0.030 to "
        "\N{MINUS SIGN}0.010); 20 test cases. "
        "Pre-training (mae) helped: mean Dice +0.030 with 50 labelled cases (95 % interval +0.020 to +0.040); 24 test cases. "
        "Whether pre-training (mae) helped cannot be told with so few cases (20 test cases): mean Dice 0.000 with all labelled "
        "cases (95 % interval \N{MINUS SIGN}0.010 to +0.010)."
    )
    assert voco == "Pre-training (voco): nothing can be told yet, for nothing is paired with scratch."
    assert (
        nnunet == "nnunet was better: mean Dice +0.050 (95 % interval +0.040 to +0.060); 20 test cases of 3 data sets."
    )
    assert "Add another one" in headline([], "Dice", ["scratch"], [], "scratch")[0]
    (distance,) = headline([row("mae", HELPED, -1.5)], "HD95", ["scratch", "mae"], ["mae"], "scratch")
    assert "mean HD95 \N{MINUS SIGN}1.50 mm (95 % interval \N{MINUS SIGN}1.51 mm to \N{MINUS SIGN}1.49 mm)" in distance


def test_a_gain_smaller_than_its_spread_over_seeds_is_said_to_be_so():
    steady, shaky = row("mae", HELPED, 0.03), {**row("voco", HELPED, 0.03), "seed_deviation": 0.05}
    assert cautions([steady], "scratch") == []
    (said,) = cautions([steady, shaky], "scratch")
    assert said.startswith(
        "voco with all labelled cases: the difference to scratch changes more with the random numbers"
    )
    assert "one seed" in cautions([{**steady, "seeds": 1, "seed_deviation": NAN}], "scratch")[0]
