"""The table and what is made of it: types, weights, subjects, splits, duplicates, the overview and its page."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_ssl.cli.corpus import main
from nnunet_ssl.corpus.overview.build import build_overview, describe_columns
from nnunet_ssl.corpus.overview.describe import add_slices, describe_dataset
from nnunet_ssl.corpus.overview.duplicates import find_duplicates
from nnunet_ssl.corpus.overview.samples import thumbnail
from nnunet_ssl.corpus.overview.sections import as_text
from nnunet_ssl.corpus.sampling import sampling_weights
from nnunet_ssl.corpus.subjects import split_by_subject, stable_split, subjects_of
from nnunet_ssl.corpus.table import FILE, read_table, typed, write_table
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.report.corpus_page import contact_sheet, histograms, write_corpus_page


def make_table(**columns: object) -> pd.DataFrame:
    return typed(pd.DataFrame(columns))


def test_types_survive_the_file(tmp_path):
    table = make_table(
        case=["a", "b"],
        depth=[3, None],
        spacing_x=[0.5, None],
        subject=["007", None],
        problem=[None, "cut off"],
        score=[1, 2.5],
        flag=[True, None],
        mixed=["x", 3],
        empty=[None, None],
    )
    write_table(table, str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == [FILE]
    back = read_table(str(tmp_path), with_problems=True)
    pd.testing.assert_frame_equal(back, table, check_dtype=False)
    assert back["depth"].iloc[0] == 3
    assert back["subject"].iloc[0] == "007"
    assert back["mixed"].tolist() == ["x", "3"]
    assert read_table(str(tmp_path))["case"].tolist() == ["a"]
    assert list(read_table(str(tmp_path), ["case", "score"]).columns) == ["case", "score"]
    (tmp_path / FILE).write_bytes(b"no parquet")
    with pytest.raises(CorpusError, match="cannot be read"):
        read_table(str(tmp_path))
    with pytest.raises(CorpusError, match="There is no"):
        read_table(str(tmp_path / "absent"))


def test_slices_are_counted_along_the_largest_spacing():
    shapes = {"depth": [22, 200, 9, None], "height": [320, 256, 30, None], "width": [280, 180, 5, None]}
    spacings = {
        "spacing_z": [6.5, 1.0, 2.0, None],
        "spacing_y": [0.7, 1.0, 2.0, None],
        "spacing_x": [0.7, 1.0, 3.0, None],
    }
    table = add_slices(typed(pd.DataFrame(shapes | spacings | {"case": list("abcd")})))
    assert table["slices"].tolist()[:3] == [22, 180, 5]
    assert table["thickness"].tolist()[:3] == [6.5, 1.0, 3.0]
    assert np.isnan(table["slices"].tolist()[3])


def test_sampling_weights():
    table = make_table(
        case=list("abcde"),
        dataset=["x", "x", "x", "y", None],
        subject=["1", "1", "2", "1", None],
        modality=["T1w", "T1w", "T2w", None, None],
    )
    assert sampling_weights(table, "images").tolist() == [0.2] * 5
    # people: x/1 (twice), x/2, y/1, and e of whom nothing is known
    assert sampling_weights(table, "subjects").tolist() == [1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4]
    np.testing.assert_allclose(sampling_weights(table, "modalities"), [1 / 6, 1 / 6, 1 / 3, 1 / 6, 1 / 6])
    np.testing.assert_allclose(sampling_weights(table, "datasets"), [1 / 9, 1 / 9, 1 / 9, 1 / 3, 1 / 3])
    assert sampling_weights(table, "datasets").index.tolist() == list("abcde")
    with pytest.raises(CorpusError, match="There are: images, subjects"):
        sampling_weights(table, "scanner")
    with pytest.raises(CorpusError, match="no image"):
        sampling_weights(table.head(0))


def test_subjects_come_from_the_table_and_otherwise_from_the_name(tmp_path):
    table = make_table(case=["scan1", "scan2", "sub-3_T1w"], dataset=["d", "d", "d"], subject=["P", "P", None])
    write_table(table, str(tmp_path))
    cases = ["scan1", "scan2", "sub-3_T1w", "sub-4_ses-1_T1w"]
    assert list(subjects_of(str(tmp_path), cases).values()) == ["d/P", "d/P", "sub-3", "sub-4"]
    assert list(subjects_of(None, cases).values()) == ["scan1", "scan2", "sub-3", "sub-4"]
    assert list(subjects_of(str(tmp_path / "absent"), ["sub-1_T1w"], "Dataset001_X").values()) == ["Dataset001_X/sub-1"]
    assert list(subjects_of(str(tmp_path), ["scan1", "sub-3_T1w"], "Dataset001_X").values()) == [
        "d/P",
        "Dataset001_X/sub-3",
    ]


def test_adding_images_never_changes_who_is_held_out(tmp_path):
    file = str(tmp_path / "held_out.json")

    def split(subjects: int, sessions: int) -> tuple[set[str], set[str]]:
        of = {f"s{i}_v{v}": f"s{i}" for i in range(subjects) for v in range(sessions)}
        training, validation = stable_split(of, of, file)
        assert sorted(training + validation) == sorted(of)
        people = {of[c] for c in training}, {of[c] for c in validation}
        assert not people[0] & people[1]
        return people

    first = split(60, 1)
    assert len(first[1]) == 5
    for subjects, sessions in ((60, 3), (400, 2), (3000, 1)):
        later = split(subjects, sessions)
        assert later[1] == first[1]
        assert first[0] <= later[0]
    # the same by hashes alone would move some
    assert set(split_by_subject([f"s{i}" for i in range(3000)])[1]) != first[1]
    # a filter that takes away all of them does not leave the validation empty
    others = {f"t{i}": f"t{i}" for i in range(20)}
    assert len(stable_split(others, others, file)[1]) == 4


def test_duplicates_by_content(tmp_path):
    generator = np.random.default_rng(0)
    one, two = generator.bytes(5000), generator.bytes(5000)
    (tmp_path / "a.nii").write_bytes(one)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(one, 1, mtime=1))
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(one, 9, mtime=2))
    (tmp_path / "d.nii.gz").write_bytes(gzip.compress(two))
    (tmp_path / "e.nii").write_bytes(two[:-1] + b"x")
    (tmp_path / "f.nii").symlink_to(tmp_path / "e.nii")
    (tmp_path / "short.nii.gz").write_bytes(b"x")
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    groups = [[Path(p).name for p in group] for group in find_duplicates([*paths, "/nowhere.nii"], 2)]
    assert groups == [["a.nii", "b.nii.gz", "c.nii.gz"], ["e.nii", "f.nii"]]


def test_a_dataset_that_was_not_imported(tmp_path, tiny_dataset):
    folder = tiny_dataset(tmp_path, num_cases=3, channels=2)
    (folder / "imagesTr/tiny_01_0000.nii.gz").write_bytes(b"broken")
    table = describe_dataset(str(folder), 2, show_progress=False)
    assert not (folder / FILE).exists()
    assert table["case"].tolist() == ["tiny_00", "tiny_01", "tiny_02"]
    assert table["problem"].notna().tolist() == [False, True, False]
    assert table.loc[0, ["depth", "height", "width", "spacing_z", "channels"]].tolist() == [20, 24, 28, 1.0, 2]
    assert table["modality"].tolist() == ["MR+MR"] * 3
    sections, samples = build_overview(str(folder), table, num_samples=5, duplicates=True, num_processes=1)
    text = as_text(sections)
    assert "not a gzip file" in text
    assert [s.case for s in samples] == ["tiny_00", "tiny_02"]
    # two channels of 20 x 24 x 28 voxels in 4 bytes, twice
    assert f"{2 * 2 * 4 * 20 * 24 * 28 / 1e6:.2f} MB" in text
    page = tmp_path / "page.html"
    write_corpus_page(page, "Tiny <1>", table, sections, samples)
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 2
    assert "Tiny &lt;1&gt;" in html
    assert "http" not in html.replace("http-equiv", "")
    assert "depth: 20 to 20 (1 missing)" in describe_columns(table)


def test_thumbnails_are_upright_and_keep_the_shape_of_the_body():
    image = np.zeros((10, 40, 20), np.float32)
    image[:, :20] = 100
    picture = thumbnail(image, (5.0, 1.0, 1.0), 0.0, 100.0)
    assert picture.shape == (96, 48)
    assert picture[:47].min() == 255
    assert picture[49:].max() == 0
    # the first axis from the feet up: in a slice along it, what is last is on top
    standing = np.zeros((40, 20, 10), np.float32)
    standing[30:] = 100
    picture = thumbnail(standing, (1.0, 1.0, 5.0), 0.0, 100.0)
    assert picture[:20].min() == 255
    assert picture[40:].max() == 0


def test_pictures_of_a_corpus_have_every_image(tmp_path, tiny_dataset):
    folder = tiny_dataset(tmp_path, num_cases=12)
    table = describe_dataset(str(folder), 2, show_progress=False)
    _, samples = build_overview(str(folder), table, num_samples=11, duplicates=False, num_processes=1)
    assert len(samples) == 11
    sheet = contact_sheet(samples, table)
    assert len(sheet.axes) == 11
    assert sheet.get_figwidth() > sheet.get_figheight()
    assert len(histograms(table).axes) == 6


def test_the_command_names_what_there_is(tmp_path, tiny_dataset, monkeypatch, capsys):
    tiny_dataset(tmp_path, dataset_id=901, num_cases=1)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    for flags, message in [
        (["-d", "7"], "There are: Dataset901_Tiny"),
        (["-d", "901", "--filter", "slices > 1000"], "Nothing is left"),
        (["-d", "901", "--filter", "slice > 10"], "Did you mean slices"),
        (["-d", "901", "--sample", "-1"], "--sample wants 0 or more"),
    ]:
        with pytest.raises(SystemExit):
            main([*flags, "-np", "1"])
        assert message in capsys.readouterr().err
