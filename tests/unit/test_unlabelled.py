"""nnU-Net copies only labels that exist."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from nnunetv2.experiment_planning import plan_and_preprocess_api

from nnunet_ssl.integration.unlabelled import labelled_cases, limit_label_copy

NAME = "get_filenames_of_train_images_and_targets"


def test_labelled_cases_are_nnunets_where_all_are_labelled(tmp_path: Path, tiny_dataset: Callable[..., Path]) -> None:
    folder = tiny_dataset(tmp_path, num_cases=3, channels=2)
    stock = vars(plan_and_preprocess_api)[NAME](str(folder))
    assert labelled_cases(str(folder)) == stock


def test_cases_without_a_label_file_are_left_out(tmp_path: Path, tiny_dataset: Callable[..., Path]) -> None:
    folder = tiny_dataset(tmp_path, num_cases=3, num_labelled=1)
    assert list(labelled_cases(str(folder))) == ["tiny_00"]


def test_dataset_key_without_labels(tmp_path: Path, tiny_dataset: Callable[..., Path]) -> None:
    folder = tiny_dataset(tmp_path, num_cases=2)
    description = json.loads((folder / "dataset.json").read_text())
    image, label = "imagesTr/tiny_00_0000.nii.gz", "labelsTr/tiny_00.nii.gz"
    description["dataset"] = {"with": {"images": [image], "label": label}, "without": {"images": [image]}}
    assert list(labelled_cases(str(folder), description)) == ["with"]


def test_nnunets_preprocessing_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_and_preprocess_api, NAME, vars(plan_and_preprocess_api)[NAME])
    limit_label_copy()
    assert vars(plan_and_preprocess_api)[NAME] is labelled_cases
