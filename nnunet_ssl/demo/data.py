"""The demo's data: two nnU-Net datasets of made-up volumes, one without labels and one with a few.

    python -m nnunet_ssl.demo.data --raw <nnUNet_raw> --seed 0

The unlabelled volumes lie in a folder of their own, as scans do in real life. Nothing is copied: the dataset.json of
the unlabelled dataset points at them with nnU-Net's own "dataset" key.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_ssl.demo.phantom import make_phantom
from nnunet_ssl.files.atomic import atomic_path, write_json

UNLABELLED = "Dataset901_DemoUnlabelled"
LABELLED = "Dataset902_DemoLabelled"
LABELS = {"background": 0, "core": 1, "tail": 2}
FILE_ENDING = ".nii.gz"
SCANS = "scans"  # beside the folder nnUNet_raw
GROUPS = ("unlabelled", "labelled", "test")


def write_demo_datasets(
    raw_folder: str | os.PathLike[str],
    seed: int = 0,
    n_unlabelled: int = 40,
    n_labelled: int = 4,
    n_test: int = 12,
) -> None:
    """Write both datasets into `raw_folder` (nnUNet_raw), and the unlabelled volumes into `scans` beside it.

    Dataset901_DemoUnlabelled: dataset.json only. Dataset902_DemoLabelled: imagesTr and labelsTr with `n_labelled` cases to train
    on and `n_test` held-out ones, the one fold of its splits_final.json. A volume depends on the seed, its group and its number
    alone: asking
    for more volumes changes none of the others. Raises ValueError when a group would be empty.
    """
    counts = dict(zip(GROUPS, (n_unlabelled, n_labelled, n_test), strict=True))
    if min(counts.values()) < 1:
        raise ValueError(f"Every group of the demo's data needs at least one volume, found {counts}.")
    raw = Path(raw_folder)
    unlabelled, labelled, scans = raw / UNLABELLED, raw / LABELLED, raw.parent / SCANS
    for folder in (unlabelled, scans):
        folder.mkdir(parents=True, exist_ok=True)
    dataset = {}
    for number in range(n_unlabelled):
        case = f"scan_{number:03d}"
        _write_case(seed, "unlabelled", number, scans / f"{case}{FILE_ENDING}", None)
        # Relative to the dataset's folder: the demo can be moved.
        dataset[case] = {"images": [os.path.relpath(scans / f"{case}{FILE_ENDING}", unlabelled)]}
    _write_json(unlabelled, {"background": 0}, n_unlabelled, dataset=dataset)

    for folder in (labelled / "imagesTr", labelled / "labelsTr"):
        folder.mkdir(parents=True, exist_ok=True)
    fold: dict[str, list[str]] = {}
    for group, prefix, side in (("labelled", "train", "train"), ("test", "test", "val")):
        fold[side] = [f"{prefix}_{number:03d}" for number in range(counts[group])]
        for number, case in enumerate(fold[side]):
            image_file = labelled / "imagesTr" / f"{case}_0000{FILE_ENDING}"
            _write_case(seed, group, number, image_file, labelled / "labelsTr" / f"{case}{FILE_ENDING}")
    _write_json(labelled, LABELS, n_labelled + n_test)
    write_json([fold], labelled / "splits_final.json")


def _write_case(seed: int, group: str, number: int, image_file: Path, label_file: Path | None) -> None:
    phantom = make_phantom(np.random.default_rng([seed, GROUPS.index(group), number]))
    # Rounded as scanners store them, which also makes the files small.
    _write_image(phantom.image.round().astype(np.int16), image_file)
    if label_file is not None:
        _write_image(phantom.labels, label_file)


def _write_image(voxels: np.ndarray, path: Path) -> None:
    with atomic_path(path, FILE_ENDING) as temporary:
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(temporary), True)


def _write_json(folder: Path, labels: dict[str, int], number: int, **further: Any) -> None:
    content = {
        "channel_names": {"0": "phantom"},
        "labels": labels,
        "numTraining": number,
        "file_ending": FILE_ENDING,
        **further,
    }
    write_json(content, folder / "dataset.json")


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m nnunet_ssl.demo.data`."""
    parser = argparse.ArgumentParser(
        prog="python -m nnunet_ssl.demo.data",
        description="Write the demo's two nnU-Net datasets, one without labels and one with a few.",
    )
    parser.add_argument("--raw", required=True, metavar="FOLDER", help="the folder nnUNet_raw to write into")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other volumes (default: 0)")
    parser.add_argument("--unlabelled", type=int, default=40, metavar="N", help="volumes without labels (default: 40)")
    parser.add_argument("--labelled", type=int, default=4, metavar="N", help="labelled training cases (default: 4)")
    parser.add_argument("--test", type=int, default=12, metavar="N", help="held-out test cases (default: 12)")
    args = parser.parse_args(argv)
    write_demo_datasets(args.raw, args.seed, args.unlabelled, args.labelled, args.test)
    print(f"{UNLABELLED}: {args.unlabelled} volumes without labels, in {Path(args.raw).parent / SCANS}")
    print(f"{LABELLED}: {args.labelled} labelled cases for training, {args.test} for testing")


if __name__ == "__main__":
    main()
