"""Listing the images of a dataset: nnU-Net's rules, labels optional, and errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.errors import CorpusError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def describe(folder: Path, **content: Any) -> dict[str, Any]:
    (folder / "dataset.json").write_text(json.dumps(content))
    return content


def test_folders_as_nnunet_lists_them(tmp_path: Path) -> None:
    names = ("b_1_0000", "b_1_0001", "a_0000", "a_0001", "a.b-c_0000", "a.b-c_0001")
    touch(tmp_path, *(f"imagesTr/{n}.nii.gz" for n in names), *(f"labelsTr/{n}.nii.gz" for n in ("a", "b_1", "a.b-c")))
    content = describe(tmp_path, file_ending=".nii.gz")
    expected = get_filenames_of_train_images_and_targets(str(tmp_path), content)
    found = list_images(str(tmp_path), content)
    assert found == {str(k): {"images": v["images"], "label": v["label"]} for k, v in expected.items()}
    assert list(found) == [str(k) for k in expected]


def test_labels_are_optional(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz")
    found = list_images(str(tmp_path), {"file_ending": ".nii.gz"})
    assert found["a"]["label"] is None
    assert found["b"]["label"] == str(tmp_path / "labelsTr" / "b.nii.gz")


def test_entries_with_variables_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, raw = tmp_path / "elsewhere", tmp_path / "raw"
    touch(elsewhere, "x.nii.gz", "y.nii.gz", "z.nii.gz")
    touch(raw, "labels/y.nii.gz")
    monkeypatch.setenv("MY_IMAGES", str(elsewhere))
    entries = {
        "x": {"images": ["$MY_IMAGES/x.nii.gz"]},
        "y": {"images": ["../elsewhere/y.nii.gz"], "label": "labels/y.nii.gz"},
        "z": {"images": [str(elsewhere / "z.nii.gz")], "label": None},
    }
    content = {"dataset": json.loads(json.dumps(entries))}
    found = list_images(str(raw), content)
    assert found["x"] == {"images": [str(elsewhere / "x.nii.gz")], "label": None}
    assert found["y"] == {"images": [str(elsewhere / "y.nii.gz")], "label": str(raw / "labels" / "y.nii.gz")}
    assert found["z"] == {"images": [str(elsewhere / "z.nii.gz")], "label": None}
    assert content["dataset"] == entries  # written to nnUNet_preprocessed later: must stay as it was


def test_missing_files_are_listed_all_at_once(tmp_path: Path) -> None:
    touch(tmp_path, "here.nii.gz")
    entries = {f"c{i}": {"images": [f"gone{i}.nii.gz"]} for i in range(12)}
    with pytest.raises(CorpusError, match="12 of 13 files") as caught:
        list_images(str(tmp_path), {"dataset": {"here": {"images": ["here.nii.gz"]}, **entries}})
    assert "gone9" in str(caught.value)
    assert "gone10" not in str(caught.value)
    assert "and 2 more" in str(caught.value)


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no .*dataset\.json"):
        read_dataset_json(str(tmp_path))
    with pytest.raises(CorpusError, match="imagesTr"):
        list_images(str(tmp_path), {"file_ending": ".nii.gz"})
    with pytest.raises(CorpusError, match="empty"):
        list_images(str(tmp_path), {"dataset": {}})
    with pytest.raises(CorpusError, match="names no images"):
        list_images(str(tmp_path), {"dataset": {"a": {"label": "x"}}})
    touch(tmp_path, "imagesTr/scan.nii.gz")
    with pytest.raises(CorpusError, match=r"scan\.nii\.gz"):
        list_images(str(tmp_path), {"file_ending": ".nii.gz"})
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0000.nii.gz")
    with pytest.raises(CorpusError, match="number of channels"):
        list_images(str(tmp_path), {"file_ending": ".nii.gz"})
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(CorpusError, match="not valid JSON"):
        read_dataset_json(str(tmp_path))
    describe(tmp_path, file_ending=".nii.gz")
    with pytest.raises(CorpusError, match='"channel_names"'):
        read_dataset_json(str(tmp_path))


def test_dataset_json_is_completed(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz")
    describe(tmp_path, channel_names={"0": "T1w"})
    completed = read_dataset_json(str(tmp_path))
    assert completed == {
        "channel_names": {"0": "T1w"},
        "labels": {"background": 0},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }


def test_what_a_dataset_json_says_is_kept(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.v1_0000.mha")
    content = describe(
        tmp_path, modality={"0": "CT"}, labels={"background": 0, "x": 1}, numTraining=5, file_ending=".mha", name="n"
    )
    assert read_dataset_json(str(tmp_path)) == {**content, "channel_names": {"0": "CT"}}


@pytest.mark.parametrize(
    ("names", "said"), [({"0": "A"}, "names 1 channel (A)"), ({"0": "A", "1": "B", "2": "C"}, "3 channels (A, B, C)")]
)
def test_more_or_fewer_files_than_channel_names(tmp_path: Path, names: dict[str, str], said: str) -> None:
    (tmp_path / "imagesTr").mkdir()
    for case in ("a", "b"):
        for channel in range(2):
            (tmp_path / f"imagesTr/{case}_{channel:04d}.nii.gz").touch()
    with pytest.raises(CorpusError) as caught:
        list_images(str(tmp_path), {"channel_names": names, "file_ending": ".nii.gz"})
    assert "2 files per case (_0000, _0001), e.g. a" in str(caught.value)
    assert said in str(caught.value)
    assert '"channel_names": {"0": "A", "1": "' in str(caught.value)
