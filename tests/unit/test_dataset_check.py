"""A dataset.json in any state: what is wrong with it, where, and what it should be; nothing against good ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_ssl.corpus.dataset_check import mistakes_in
from nnunet_ssl.corpus.images import read_dataset_json
from nnunet_ssl.errors import CorpusError

GOOD: dict[str, Any] = {
    "channel_names": {"0": "T1w", "1": "FLAIR"},
    "labels": {"background": 0, "whole": [1, 2], "core": 1, "ignore": 3},
    "regions_class_order": [1, 2],
    "numTraining": 2,
    "file_ending": ".nii.gz",
    "dataset": {"a": {"images": ["x_0000.nii.gz", "x_0001.nii.gz"], "label": None}},
}


def test_good_ones() -> None:
    assert mistakes_in(GOOD) == []
    assert mistakes_in({"channel_names": {"0": "CT"}}) == []
    assert mistakes_in({"modality": {"0": "CT"}, "labels": {}, "training": []}) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"labels": {"0": "background", "1": "heart"}},
            'version 2 wants {name: number}: {"background": 0, "heart": 1}',
        ),
        ({"labels": ["background", "heart"]}, '"labels" is ["background", "heart"], expected'),
        ({"labels": {"background": 0, "heart": "1"}}, "no number for heart"),
        ({"labels": {"background": 0, "heart": True}}, "no number for heart"),
        ({"labels": {"heart": 1}}, "no background with number 0"),
        ({"labels": {"background": 1, "heart": 0}}, "no background with number 0"),
        ({"channel_names": ["CT"]}, '{"0": "CT"}'),
        ({"channel_names": "CT"}, 'is "CT", expected'),
        ({"channel_names": {"1": "CT"}}, "has the keys 1"),
        ({"channel_names": {"0": 7}}, "no text"),
        ({"channel_names": None, "modality": ["MR"]}, '"modality" is a list'),
        ({"dataset": ["a.nii.gz"]}, '"dataset" is ["a.nii.gz"], expected'),
        ({"dataset": {"a": "a.nii.gz", "b": {"images": "b.nii.gz"}}}, 'no images for "a", "b"'.replace('"', "'")),
        ({"dataset": {"a": {"images": ["a.nii.gz"], "label": 3}}}, "no images for 'a'"),
        ({"regions_class_order": "1, 2"}, '"regions_class_order" is'),
        ({"overwrite_image_reader_writer": 5}, '"overwrite_image_reader_writer" is 5'),
    ],
)
def test_each_mistake(change: dict[str, Any], said: str) -> None:
    found = mistakes_in(GOOD | change)
    assert len(found) == 1
    assert said in found[0]


def test_all_at_once_about_the_file(tmp_path: Path) -> None:
    content = {"channel_names": ["CT"], "labels": {"0": "background"}, "dataset": []}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(CorpusError) as caught:
        read_dataset_json(str(tmp_path))
    assert str(caught.value).count("\n  ") == 3
    assert str(caught.value).startswith(str(tmp_path / "dataset.json"))
