"""What cases, data sets and files of ours may be called, at every door at which names come in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_ssl.corpus.dataset_names import dataset_id, dataset_name, dataset_title, is_dataset_name, named
from nnunet_ssl.corpus.datasets import require_own_plans
from nnunet_ssl.corpus.images import absolute_path, list_images, read_dataset_json
from nnunet_ssl.corpus.names import bad_case_names, reason_against, require_case_names, safe_name
from nnunet_ssl.corpus.register import known_images
from nnunet_ssl.corpus.sources.csv_table import find_in_table
from nnunet_ssl.corpus.sources.dataset import find_in_dataset
from nnunet_ssl.corpus.splits import require_splits
from nnunet_ssl.errors import CorpusError

GOOD = [
    "A",
    "sub-01_ses-2_T1w",
    "hippocampus_001",
    "a.b+c",
    "community",
    "aux1",
    "Patient 7",
    "Übung",
    "segment",
    "x" * 200,
]
BAD = {
    "../x": "separator",
    "/etc/x": "separator",
    "a\\b": "separator",
    "..": "begins",
    ".hidden": "begins",
    "~user": "begins",
    "$HOME": "environment",
    "a\nb": "control",
    "a\x1b[2J": "control",
    "A_seg": "label map of 'A'",
    "A_SEG": "label map",
    "con": "Windows",
    "COM1.x": "Windows",
    "a.": "Windows",
    "": "empty",
    "x" * 201: "201 bytes",
    "é" * 101: "202 bytes",
    "\udce4": "UTF-8",
}


@pytest.mark.parametrize("name", GOOD)
def test_names_that_are_fine(name: str) -> None:
    assert reason_against(name) is None
    assert bad_case_names([name]) == []


@pytest.mark.parametrize(("name", "reason"), BAD.items())
def test_names_that_are_not(name: str, reason: str) -> None:
    assert reason in str(reason_against(name))
    assert [n for n, _ in bad_case_names(["A", name])] == [name]  # the fast way says the same


def test_all_are_named_at_once_with_a_way_out() -> None:
    with pytest.raises(CorpusError) as caught:
        require_case_names(["ok", *BAD, "OK"], "here")
    text = str(caught.value)
    assert f"{len(BAD) + 1} case names in here" in text
    assert "'OK': differs from 'ok'" in text
    assert "nnUNetv2_pretrain_import" in text
    assert text.count("\n  ") == len(BAD) + 1
    assert bad_case_names(["é", "e\u0301"])  # the same letter, composed and not


@pytest.mark.parametrize("name", [*GOOD[:-1], *(n for n in BAD if n not in ("", "..", "\udce4"))])
def test_names_made_here_are_fine(name: str) -> None:
    made = safe_name(name)
    assert not made or len(made) > 120 or reason_against(made) is None, made


def dataset(folder: Path, files: list[str], **extra: object) -> Path:
    (folder / "imagesTr").mkdir(parents=True)
    for name in files:
        (folder / "imagesTr" / name).touch()
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0}, "file_ending": ".nii.gz", **extra}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_the_door_of_folders(tmp_path: Path) -> None:
    raw = dataset(tmp_path / "Dataset030_N", ["A_0000.nii.gz", "A_seg_0000.nii.gz", "$HOME_0000.nii.gz"])
    with pytest.raises(CorpusError, match="2 case names in") as caught:
        list_images(str(raw), read_dataset_json(str(raw)))
    assert "'A_seg'" in str(caught.value)
    assert "'$HOME'" in str(caught.value)
    table = find_in_dataset(str(raw)).table  # which gives them other names
    assert set(table["path"]) == {str(p) for p in (raw / "imagesTr").iterdir()}


@pytest.mark.parametrize("name", ["../../gone", "/etc/passwd", "A_seg"])
def test_the_door_of_dataset_json(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.nii.gz").touch()
    raw = dataset(tmp_path / "Dataset030_N", [], dataset={name: {"images": [str(tmp_path / "a.nii.gz")]}})
    with pytest.raises(CorpusError, match="1 case names in"):
        list_images(str(raw), read_dataset_json(str(raw)))


@pytest.mark.parametrize("ending", ["/../../x.nii.gz", "nii", 7, ".nii/..", ".n$HOME"])
def test_the_door_of_endings(tmp_path: Path, ending: object) -> None:
    raw = dataset(tmp_path / "Dataset030_N", ["A_0000.nii.gz"], file_ending=ending)
    with pytest.raises(CorpusError, match='"file_ending" in'):
        read_dataset_json(str(raw))


def test_the_door_of_tables(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "scans.csv").write_text("path,case\none.nii.gz,../a\ntwo.nii.gz,B_seg\nthree.nii.gz,C\n")
    found = find_in_table(str(tmp_path / "scans.csv"), "X")
    assert [str(m).partition(": ")[0] for m in found.mistakes] == ["scans.csv, row 2", "scans.csv, row 3"]
    assert found.table["name"].tolist() == ["C"]


def test_the_door_of_a_registered_corpus(tmp_path: Path) -> None:
    import pandas as pd

    from nnunet_ssl.corpus.table import write_table

    write_table(pd.DataFrame({"case": ["../x"], "path": ["/a.nii.gz"]}), str(tmp_path))
    with pytest.raises(CorpusError, match="separator"):
        known_images(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{"train": ["a"], "val": ["../../b"]}], "separator"),
        ([{"train": ["a"], "val": [7]}], None),
        ([{"train": ["a"]}], "no splits"),
        ({"train": []}, "no splits"),
        ("{", "no splits"),
    ],
)
def test_the_door_of_splits(tmp_path: Path, content: object, reason: str | None) -> None:
    file = tmp_path / "splits_final.json"
    require_splits(str(file))
    file.write_text(json.dumps(content))
    if reason is None:
        require_splits(str(file))
        return
    with pytest.raises(CorpusError, match=reason):
        require_splits(str(file))
    file.write_text("{")
    with pytest.raises(CorpusError, match="not valid JSON"):
        require_splits(str(file))


def test_a_file_called_like_a_variable_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    (tmp_path / "$DATA.nii.gz").touch()
    assert absolute_path("$DATA.nii.gz", str(tmp_path)) == str(tmp_path / "$DATA.nii.gz")
    assert absolute_path(str(tmp_path / "$DATA.nii.gz") + "::volume=3", "/") == str(tmp_path / "$DATA.nii.gz::volume=3")
    assert absolute_path("$DATA/x.nii.gz", "/") == str(tmp_path / "data" / "x.nii.gz")


def test_names_of_data_sets() -> None:
    assert (dataset_id("Dataset004_Hippo"), dataset_title("Dataset004_Hippo")) == (4, "Hippo")
    assert (dataset_id("Dataset1234_Big_One"), dataset_title("Dataset1234_Big_One")) == (1234, "Big_One")
    assert dataset_name(4, "X") == "Dataset004_X"
    assert dataset_name(12345, "X") == "Dataset12345_X"
    assert not any(
        map(is_dataset_name, ["Dataset04_X", "Dataset004_a/b", "Dataset004_..\\x", "../Dataset004_X", 4, None])
    )
    with pytest.raises(CorpusError, match="no data set's name"):
        dataset_id("DatasetX")
    names = ["Dataset123_Other", "Dataset1234_Big"]
    assert (named(123, names), named("1234", names), named("12", names), named("²", names)) == (*names, None, None)
    with pytest.raises(CorpusError, match="ambiguous"):
        named(4, ["Dataset004_A", "Dataset004_B"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dataset_name": "Dataset075_Other"}, '"dataset_name": "Dataset074_X"'),
        ({"plans_name": "../x"}, "separator"),
        ({"configurations": {"3d_fullres": {"data_identifier": "../../home"}}}, "separator"),
        ({"configurations": []}, "no plans"),
    ],
)
def test_the_door_of_plans(change: dict[str, object], reason: str) -> None:
    plans = {
        "dataset_name": "Dataset074_X",
        "plans_name": "P",
        "configurations": {"3d_fullres": {"data_identifier": "a_b"}},
    }
    assert require_own_plans(plans, "p.json", "Dataset074_X") is plans
    with pytest.raises(CorpusError) as caught:
        require_own_plans(plans | change, "p.json", "Dataset074_X")
    assert reason in str(caught.value)
