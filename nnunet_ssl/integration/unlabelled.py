"""Let nnU-Net's own preprocessing command finish on images without labels."""

from __future__ import annotations

from os.path import join
from typing import Any

from nnunet_ssl.corpus.address import split_masks
from nnunet_ssl.corpus.images import list_images
from nnunet_ssl.files.entering import read_json


def limit_label_copy() -> None:
    """Make `nnUNetv2_preprocess` copy only labels that exist to `gt_segmentations`, from here on in this process.

    After the preprocessor has run, nnU-Net copies the label of every case and would stop at the first case without one.
    """
    from nnunetv2.experiment_planning import plan_and_preprocess_api

    plan_and_preprocess_api.get_filenames_of_train_images_and_targets = labelled_cases


def labelled_cases(raw_dataset_folder: str, dataset_json: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Images and label of every case that has a label, in the form of nnU-Net's function of that purpose.

    Raises CorpusError for files that dataset.json names and that do not exist.
    """
    if dataset_json is None:
        dataset_json = read_json(join(raw_dataset_folder, "dataset.json"))
    cases = list_images(raw_dataset_folder, dataset_json)
    # Masks of an imported corpus are addresses, not files, and no ground truth.
    return {name: case for name, case in cases.items() if case["label"] is not None and not split_masks(case["label"])}
