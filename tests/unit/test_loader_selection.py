"""Filters, subjects and weights over the tables of a corpus of several data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_ssl.corpus.table import write_table
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.trainers.data.corpus import CorpusDataset
from nnunet_ssl.trainers.data.selection import apply_filter, columns_of, corpus_table, subject_of_image, weights_for

A, B = "Dataset001_A", "Dataset002_B"


@pytest.fixture
def datasets(tmp_path: Path) -> list[CorpusDataset]:
    """A with a table of five images, one of which was never preprocessed; B without a table, two images of a person."""
    rows = {
        "case": ["a1", "a2", "a3", "a4", "gone"],
        "path": ["/p"] * 5,
        "subject": ["x", "x", "y", None, "z"],
        "dataset": ["origin", "origin", "origin", None, "origin"],
        "modality": ["T1w", "T2w", "T1w", None, "T1w"],
        "iqs": [1.0, 2.0, 3.0, None, 1.0],
        "usable": [True, True, False, None, True],
    }
    (tmp_path / "raw_A").mkdir()
    write_table(pd.DataFrame(rows), str(tmp_path / "raw_A"))
    for name, cases in (("A", rows["case"][:4]), ("B", ["sub-1_ses-1_T1w", "sub-1_ses-2_T1w"])):
        (tmp_path / name).mkdir()
        for case in cases:
            for suffix in (".b2nd", "_seg.b2nd", ".pkl"):
                (tmp_path / name / f"{case}{suffix}").touch()
    first = CorpusDataset(A, str(tmp_path / "A"), channels=("T1w",), table_folder=str(tmp_path / "raw_A"))
    return [first, CorpusDataset(B, str(tmp_path / "B"), channels=("CT", "PET"))]


def names(chosen: set[str]) -> list[str]:
    return sorted(identifier.rpartition("/")[2] for identifier in chosen)


def test_every_image_is_in_the_table(datasets):
    table = corpus_table(datasets, ["iqs", "nonsense"]).set_index("identifier")
    assert len(table) == 6
    assert table.loc[f"{A}/a4", ["dataset", "subject", "modality"]].tolist() == [A, "a4", "T1w"]
    assert table.loc[f"{B}/sub-1_ses-1_T1w", ["dataset", "subject", "modality", "channels"]].tolist() == [
        B,
        "sub-1",
        "CT+PET",
        2,
    ]
    assert table["iqs"].isna().sum() == 3
    assert "nonsense" not in table


def test_a_person_of_one_origin_is_the_same_everywhere(datasets):
    persons = subject_of_image(corpus_table(datasets))
    assert persons[f"{A}/a1"] == persons[f"{A}/a2"] == "origin/x"
    assert len(set(persons.values())) == 4
    other = CorpusDataset(
        "Dataset003_C", datasets[0].folder, channels=("FLAIR",), table_folder=datasets[0].table_folder
    )
    both = subject_of_image(corpus_table([datasets[0], other]))
    assert both[f"{A}/a1"] == both["Dataset003_C/a2"]


def test_filters_choose_over_all_data_sets(datasets):
    kept, sentence = apply_filter(datasets, 'modality == "T1w" and iqs <= 2.5 or dataset == "Dataset002_B"')
    assert names(kept) == ["a1", "sub-1_ses-1_T1w", "sub-1_ses-2_T1w"]
    assert "1 of 4 of Dataset001_A" in sentence
    assert "2 of 2 of Dataset002_B" in sentence
    assert names(apply_filter(datasets[:1], "iqs <= 2.5")[0]) == ["a1", "a2"]
    assert names(apply_filter(datasets[:1], "usable and case != 'a2'")[0]) == ["a1"]
    assert names(apply_filter(datasets, "iqs > 2.5 or missing(iqs)")[0])[:2] == ["a3", "a4"]
    assert names(apply_filter(datasets, 'startswith(case, "sub-")')[0])[0] == "sub-1_ses-1_T1w"


def test_a_filter_that_selects_nothing_shows_the_values(datasets):
    with pytest.raises(CorpusError, match=r"None of the 6") as caught:
        apply_filter(datasets, 'modality == "T1" and iqs > 5 and usable')
    assert "modality: T1w (3), CT+PET (2), T2w (1)" in str(caught.value)
    assert "iqs: 1 to 3, median 2; 3 images have none" in str(caught.value)
    assert "usable: True (2), False (1); 3 images have none" in str(caught.value)


def test_a_data_set_that_lacks_the_column_is_not_left_out_in_silence(datasets):
    with pytest.raises(CorpusError, match=r"all 2 images of Dataset002_B.*nothing of iqs.*missing\(iqs\)"):
        apply_filter(datasets, "iqs <= 2.5")
    with pytest.raises(CorpusError, match=r"names the column quality, which there is not.*iqs"):
        apply_filter(datasets, "quality <= 2.5")
    with pytest.raises(CorpusError, match="cannot be read"):
        apply_filter(datasets, "iqs <=")


def test_names_in_an_expression():
    assert columns_of('lower(modality) == "t1w" and 0 < iqs <= slices') == ["iqs", "modality", "slices"]
    assert columns_of(None) == columns_of("iqs <=") == []


def test_weights_follow_the_given_order(datasets):
    chosen = [f"{B}/sub-1_ses-1_T1w", f"{A}/a2", f"{A}/a1", f"{A}/a4"]
    assert weights_for(datasets, chosen, "images") is None
    np.testing.assert_allclose(weights_for(datasets, chosen, "subjects"), [1 / 3, 1 / 6, 1 / 6, 1 / 3])
    np.testing.assert_allclose(weights_for(datasets, chosen, "modalities"), [1 / 3, 1 / 3, 1 / 6, 1 / 6])
    np.testing.assert_allclose(weights_for(datasets, chosen, "datasets"), [1 / 3, 1 / 6, 1 / 6, 1 / 3])
