"""Subjects from names, and splits that keep a subject together."""

from __future__ import annotations

import pytest

from nnunet_ssl.corpus.subjects import split_by_subject, subject_of


@pytest.mark.parametrize(
    ("case", "subject"),
    [
        ("hippocampus_001", "hippocampus_001"),
        ("scan_001", "scan_001"),
        ("BRATS_017", "BRATS_017"),
        ("sub-01_ses-02_run-1_T1w", "sub-01"),
        ("sub-01", "sub-01"),
        ("ds000114__sub-07_ses-test_T1w", "ds000114__sub-07"),
        ("OpenMind__ds1__sub-3__ses-1__T1w", "OpenMind__ds1__sub-3"),
        ("OpenMind__ds1__P3__ses-1__T1w_2", "OpenMind__ds1__P3"),
        ("P7_ses-01", "P7"),
        ("P7_ses01", "P7"),
        ("P7_session2_T1wCE", "P7"),
        ("P7_visit1_FLAIR", "P7"),
        ("P7_tp2", "P7"),
        ("P7_timepoint2_T2w", "P7"),
        ("P7_run-1_DWI", "P7"),
        ("P7_scan2_ADC", "P7"),
        ("P7_T1", "P7"),
        ("P7_t2_run-2", "P7"),
        ("P_7_T1w_scan1", "P_7"),
        ("_T1w", "_T1w"),
        ("CT", "CT"),
        ("ATRIUM", "ATRIUM"),
        ("lung_tpx2", "lung_tpx2"),
    ],
)
def test_subject_of(case: str, subject: str) -> None:
    assert subject_of(case) == subject


@pytest.mark.parametrize(
    ("subjects", "held_out"), [(2, 1), (4, 1), (5, 1), (12, 2), (25, 5), (500, 5), (2000, 20), (200_000, 1000)]
)
def test_how_many_subjects_are_held_out(subjects: int, held_out: int) -> None:
    training, validation = split_by_subject(f"c{i}" for i in range(subjects))
    assert len(validation) == held_out
    assert len(training) == subjects - held_out
    assert not set(training) & set(validation)


def test_a_subject_is_never_divided() -> None:
    cases = [f"sub-{s:02d}_ses-{v}_T1w" for s in range(30) for v in range(3)]
    training, validation = split_by_subject(cases)
    assert len(validation) == 15
    assert not {subject_of(c) for c in training} & {subject_of(c) for c in validation}
    assert sorted(training + validation) == sorted(cases)


def test_given_subjects_win_over_names() -> None:
    cases = ["a", "b", "c", "d"]
    _, validation = split_by_subject(cases, {"a": "x", "b": "y", "c": "x", "d": "y"})
    assert sorted(validation) in (["a", "c"], ["b", "d"])


def test_more_images_move_few_subjects() -> None:
    _, before = split_by_subject(f"c{i}" for i in range(1000))
    _, after = split_by_subject(f"c{i}" for i in range(1010))
    assert len(set(before) & set(after)) >= len(before) - 2
    assert split_by_subject([f"c{i}" for i in range(1000)])[1] == before


def test_a_single_subject_is_on_both_sides() -> None:
    cases = ["sub-01_T1w", "sub-01_T2w"]
    assert split_by_subject(cases) == (cases, cases)
    assert split_by_subject([]) == ([], [])
