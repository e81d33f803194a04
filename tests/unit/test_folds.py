"""Folds for fine-tuning: labelled cases alone, by person, as many as there can be; and what pre-training makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_ssl.corpus.unusable_labels import note_unusable, usable_labels
from nnunet_ssl.planners.folds import folds_of, make_folds, write_folds
from nnunet_ssl.trainers.data.loading import _in_no_fold

NAME = "Dataset901_Folds"


@pytest.fixture
def folder(nnunet_folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in nnunet_folders.items():
        monkeypatch.setenv(name, value)
    path = Path(nnunet_folders["nnUNet_preprocessed"]) / NAME
    path.mkdir()
    return path


def splits(folder: Path) -> list[dict[str, list[str]]]:
    return json.loads((folder / "splits_final.json").read_text())


def test_unlabelled_cases_are_in_no_fold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled = [f"case_{n:03d}x" for n in range(10)]
    unlabelled = [f"scan_{n:03d}y" for n in range(200)]
    write_folds(NAME, labelled, [*labelled, *unlabelled])
    assert splits(folder) == generate_crossval_split(sorted(labelled), seed=12345, n_splits=5), "nnU-Net's own folds"
    assert "5 folds of the 10 labelled images" in capsys.readouterr().out
    assert folds_of(NAME) == [0, 1, 2, 3, 4]


def test_where_nnunet_makes_the_same_nothing_is_written(folder: Path) -> None:
    cases = [f"case{n}" for n in "abcdefgh"]
    write_folds(NAME, cases, cases)
    write_folds(NAME, [], cases)
    assert not (folder / "splits_final.json").exists()
    assert folds_of(NAME) == []


def test_people_are_on_one_side(folder: Path) -> None:
    cases = [f"sub-{n:02d}_ses-{s}_T1w" for n in range(7) for s in range(3)]
    write_folds(NAME, cases, cases)
    for fold in splits(folder):
        people = [{case[:6] for case in fold[side]} for side in ("train", "val")]
        assert not people[0] & people[1]
        assert people[0] | people[1] == {case[:6] for case in cases}
        assert sorted(fold["train"] + fold["val"]) == sorted(cases)


@pytest.mark.parametrize(("number", "folds"), [(1, 0), (2, 2), (4, 4), (5, 5)])
def test_fewer_cases_than_folds(folder: Path, number: int, folds: int, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [f"case{letter}" for letter in "abcdefgh"[:number]]
    write_folds(NAME, cases, [*cases, "other"])
    assert len(folds_of(NAME)) == folds
    said = capsys.readouterr().out
    assert ("-f all" in said) == (number == 1)
    assert ("as many folds as people" in said) == (1 < number < 5)


@pytest.mark.parametrize("number", [2, 3, 10])
def test_any_number_of_folds(number: int) -> None:
    persons = {f"c{n}": f"p{n // 2}" for n in range(24)}
    made = make_folds(persons, number)
    assert len(made) == number
    assert sorted(case for fold in made for case in fold["val"]) == sorted(persons)


def test_folds_that_are_there_stay_and_what_is_wrong_with_them_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [{"train": ["a", "b"], "val": ["c"]}]
    (folder / "splits_final.json").write_text(json.dumps(own))
    write_folds(NAME, ["a", "c", "d"], ["a", "b", "c", "d"])
    assert splits(folder) == own
    said = capsys.readouterr().out
    assert "1 cases in" in said
    assert "pure background" in said
    assert "1 labelled cases are in no fold, e.g. d" in said


def test_a_fold_of_pre_training_uses_what_has_no_label(folder: Path) -> None:
    (folder / "gt_segmentations").mkdir()
    for case in ("a", "b", "c.1", "hidden"):
        (folder / "gt_segmentations" / f"{case}.nii.gz").touch()
    identifiers = [f"{NAME}/{c}" for c in ("a", "b", "c.1", "hidden", "free", "c")] + ["Dataset902_Other/x"]
    assert _in_no_fold(NAME, ".nii.gz", identifiers, ["a", "b", "c.1"]) == {"free", "c"}
    assert _in_no_fold("Dataset902_Other", ".nii.gz", identifiers, []) == set(), "nothing says what has a label"


def test_bad_labels_count_as_none_until_they_are_replaced(folder: Path, tmp_path: Path) -> None:
    label = tmp_path / "a.nii.gz"
    label.write_bytes(b"nope")
    cases = {"a": {"images": ["i"], "label": str(label)}, "b": {"images": ["i"], "label": str(tmp_path / "b.nii.gz")}}
    assert set(usable_labels(str(folder), cases)) == {"a", "b"}
    note_unusable(str(folder), {"a"}, {"a": "not a gzip file"}, cases)
    assert set(usable_labels(str(folder), cases)) == {"b"}
    label.write_bytes(b"another one")
    assert set(usable_labels(str(folder), cases)) == {"a", "b"}
    note_unusable(str(folder), {"a"}, {}, cases)
    assert json.loads((folder / "unusable_labels.json").read_text()) == {}


def test_seeds_are_nnunets() -> None:
    cases = {f"c{n}": f"c{n}" for n in range(11)}
    np.testing.assert_equal(make_folds(cases, 5), generate_crossval_split(sorted(cases), seed=12345, n_splits=5))
