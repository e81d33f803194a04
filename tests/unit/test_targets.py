"""Targets of images: the table and its mistakes, folds, measures against twins, and linear probes that find what is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from nnunet_ssl.errors import CorpusError, SettingsError
from nnunet_ssl.targets.folds import target_folds
from nnunet_ssl.targets.measures import calibration_error, measure, measures_of
from nnunet_ssl.targets.probe import probe
from nnunet_ssl.targets.table import BINARY, MULTICLASS, REGRESSION, Target, infer_kind, read_targets

SUBJECTS = {f"case_{n:02d}": f"Dataset007_Brains/person_{n // 2:02d}" for n in range(40)}


def write(folder: Path, lines: list[str], name: str = "targets.csv") -> str:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return str(path)


class TestTable:
    @pytest.mark.parametrize(
        ("values", "kind"),
        [
            ([0, 1, 1, 0.0], BINARY),
            (["yes", "no", "yes"], BINARY),
            ([1, 2] * 5, BINARY),
            ([0.5, 1.5] * 5, REGRESSION),
            (["T1w", "T2w", "FLAIR"], MULTICLASS),
            ([1, 2, 3] * 10, MULTICLASS),
            ([1, 2, 3], REGRESSION),  # too few of each to be classes
            (list(range(20, 80)), REGRESSION),
            ([1.5, 2.0, 3.0] * 10, REGRESSION),
        ],
    )
    def test_kinds_are_inferred(self, values: list[object], kind: str) -> None:
        assert infer_kind(values) == kind

    def test_rows_of_cases_and_of_people(self, tmp_path: Path) -> None:
        rows = [f"case_{n:02d},{20 + n},{'AB'[n % 2]},{n % 3 if n < 30 else ''}" for n in range(40)]
        age, group, grade = read_targets(write(tmp_path, ["case,age,group,grade", *rows]), SUBJECTS)
        assert (age.kind, age.outputs, age.values["case_07"]) == (REGRESSION, 1, 27.0)
        assert (group.kind, group.classes, group.outputs, group.values["case_01"]) == (BINARY, ("A", "B"), 1, 1.0)
        assert (grade.kind, grade.classes, grade.outputs, len(grade.values)) == (MULTICLASS, ("0", "1", "2"), 3, 30)
        assert str(grade) == "grade: multiclass, 0 (10), 1 (10), 2 (10)"
        people = [f"person_{n:02d}\t{n % 2}" for n in range(20)]
        (sick,) = read_targets(write(tmp_path, ["subject\tsick", *people], "people.tsv"), SUBJECTS)
        assert len(sick.values) == 40
        assert sick.values["case_02"] == sick.values["case_03"] == 1.0

    def test_a_column_called_as_corpus_columns_are_is_a_number_all_the_same(self, tmp_path: Path) -> None:
        rows = [f"case_{n:02d},{1000.5 + n}" for n in range(40)]
        (volume,) = read_targets(write(tmp_path, ["case,volume", *rows]), SUBJECTS)
        assert volume.kind == REGRESSION

    def test_kinds_and_columns_can_be_stated(self, tmp_path: Path) -> None:
        file = write(tmp_path, ["case,grade,site", *(f"case_{n:02d},{n % 3},x{n % 4}" for n in range(40))])
        (grade,) = read_targets(file, SUBJECTS, columns=["grade"], kinds={"grade": REGRESSION})
        assert grade.kind == REGRESSION
        for how in ({"columns": ["grad"]}, {"kinds": {"grade": "ordinal"}}):
            with pytest.raises(SettingsError, match=r"Did you mean grade|one of binary"):
                read_targets(file, SUBJECTS, **how)

    def test_all_mistakes_at_once_by_row(self, tmp_path: Path) -> None:
        lines = ["case,age,group,flat,lonely", "case_01,30,A,1,", "case_01,31,B,1,", "case_99,32,A,1,", ",33,B,1,"]
        lines += ["case_02,old,A,1,7", "case_03,35,B,1,"]
        with pytest.raises(CorpusError) as raised:
            read_targets(write(tmp_path, lines), SUBJECTS, kinds={"age": REGRESSION})
        said = str(raised.value)
        for part in (
            "6 mistakes",
            "row 3: another row has the case case_01",
            "row 4: there is no case case_99.",
            "row 5: the case is empty",
            "column age: a regression needs numbers, found 'old'",
            "column flat: all rows say 1",
            "column lonely: only 1 row",
        ):
            assert part in said

    @pytest.mark.parametrize("header", ["name,age", "case", "case,subject"])
    def test_no_key_or_no_target(self, header: str, tmp_path: Path) -> None:
        with pytest.raises(CorpusError, match="no column"):
            read_targets(write(tmp_path, [header, ",".join(["case_01"] * (header.count(",") + 1))]), SUBJECTS)


def binary(rng: np.random.Generator, cases: int = 40) -> Target:
    return Target("sick", BINARY, ("no", "yes"), {f"case_{n:02d}": float(n // 2 % 2) for n in range(cases)})


class TestFolds:
    def test_people_stay_together_and_classes_are_in_every_fold(self) -> None:
        target = binary(np.random.default_rng(0))
        folds = target_folds(target, SUBJECTS)
        assert sorted(case for fold in folds for case in fold["val"]) == sorted(target.values)
        for fold in folds:
            sides = [{SUBJECTS[case] for case in fold[side]} for side in ("train", "val")]
            assert not sides[0] & sides[1]
            assert {target.values[case] for case in fold["val"]} == {0.0, 1.0}
        assert folds == target_folds(target, SUBJECTS)

    def test_too_few_people_of_a_class_are_named(self) -> None:
        values = {f"case_{n:02d}": float(n < 6) for n in range(40)}
        with pytest.raises(CorpusError, match="sick: some classes have fewer people than there are folds"):
            target_folds(Target("sick", BINARY, ("no", "sick"), values), SUBJECTS)
        with pytest.raises(CorpusError, match="people are too few"):
            target_folds(Target("age", REGRESSION, (), {f"case_{n:02d}": float(n) for n in range(4)}), SUBJECTS)


class TestMeasures:
    def test_against_slow_twins(self) -> None:
        rng = np.random.default_rng(1)
        truth = rng.integers(0, 2, 60)
        p = np.clip(truth * 0.3 + rng.uniform(0, 0.7, 60), 0, 1)
        both = np.stack([1 - p, p], axis=1)
        found = {n: f(truth, both) for n, f in measures_of(binary(rng)).items()}
        pairs = [(a > b) + 0.5 * (a == b) for a in p[truth == 1] for b in p[truth == 0]]
        assert found["AUROC"] == pytest.approx(np.mean(pairs))
        assert found["Brier"] == pytest.approx(np.mean((p - truth) ** 2))
        decided = p > 0.5
        hits = [(decided[truth == v] == v).mean() for v in (0, 1)]
        assert found["balanced accuracy"] == pytest.approx(np.mean(hits))
        assert found["MCC"] == pytest.approx(np.corrcoef(decided, truth)[0, 1])
        gap = 0.0
        for low in np.arange(0, 1, 0.1):
            inside = (both.max(axis=1) >= low) & (both.max(axis=1) < low + 0.1 + (low > 0.85))
            if inside.any():
                gap += abs(both.max(axis=1)[inside].mean() - (decided == truth)[inside].mean()) * inside.mean()
        assert calibration_error(truth, both) == pytest.approx(gap)

    def test_of_several_classes_and_of_a_measurement(self) -> None:
        rng = np.random.default_rng(2)
        truth = rng.integers(0, 3, 80)
        p = rng.dirichlet(np.ones(3), 80) * 0.5 + np.eye(3)[truth] * 0.5
        grade = Target("grade", MULTICLASS, ("a", "b", "c"), {})
        found = {n: f(truth, p) for n, f in measures_of(grade).items()}
        assert found["AUROC"] == pytest.approx(metrics.roc_auc_score(truth, p, multi_class="ovr"))
        age = Target("age", REGRESSION, (), {})
        x = rng.normal(size=50)
        y = x + rng.normal(size=50)
        values = measure(age, x, y, [str(n) for n in range(50)], resamples=100)
        assert values["R2"]["value"] == pytest.approx(1 - ((x - y) ** 2).sum() / ((x - x.mean()) ** 2).sum())
        assert values["MAE"]["value"] == pytest.approx(np.abs(x - y).mean())
        for interval in values.values():
            assert interval["low"] < interval["value"] < interval["high"]

    def test_intervals_resample_people_and_may_not_exist(self) -> None:
        rng = np.random.default_rng(3)
        age, x = Target("age", REGRESSION, (), {}), rng.normal(size=60)
        y = x + np.repeat(rng.normal(size=6), 10)  # ten images of a person share their error
        apart, together = (
            measure(age, x, y, people, 100)["MAE"] for people in (list(range(60)), [n // 10 for n in range(60)])
        )
        assert together["high"] - together["low"] > 1.5 * (apart["high"] - apart["low"])
        single = measure(age, x, y, ["one"] * 60, 10)["MAE"]
        assert np.isfinite(single["value"])
        assert np.isnan(single["low"])
        one_class = measure(binary(rng), np.ones(4), np.full((4, 2), 0.5), list("abcd"), 10)
        assert np.isnan(one_class["AUROC"]["value"])


class TestProbe:
    @pytest.mark.parametrize("kind", [BINARY, MULTICLASS, REGRESSION])
    def test_finds_what_is_there_and_nothing_in_noise(self, kind: str) -> None:
        rng = np.random.default_rng(4)
        cases = [f"case_{n:03d}" for n in range(120)]
        subjects = {case: f"p{n // 2}" for n, case in enumerate(cases)}
        hidden = np.repeat(rng.normal(size=60), 2)
        if kind == REGRESSION:
            target = Target("age", kind, (), dict(zip(cases, 50 + 10 * hidden, strict=True)))
        else:
            number = 2 if kind == BINARY else 3
            classes = np.searchsorted(np.quantile(hidden, np.arange(1, number) / number), hidden)
            target = Target("group", kind, tuple("abc"[:number]), dict(zip(cases, classes.astype(float), strict=True)))
        noise = rng.normal(size=(120, 20))
        signal = noise + hidden[:, None] * rng.normal(size=20)
        found, nothing = (
            probe(dict(zip(cases, rows, strict=True)), target, subjects, 3, 20) for rows in (signal, noise)
        )
        main = "R2" if kind == REGRESSION else "AUROC"
        assert found.measures[main]["value"] > 0.85
        chance = 0.0 if kind == REGRESSION else 0.5
        assert nothing.measures[main]["low"] < chance + 0.1
        assert found.cases == tuple(cases)
        assert "a linear model on frozen features" in str(found)
