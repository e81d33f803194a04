"""nnUNetv2_extract_features in fresh processes, on real images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

import nnunet_ssl
from nnunet_ssl.testing import TinyTraining, tiny_training

__all__ = ["tiny_training"]

CASES = ("hippocampus_003", "hippocampus_004", "hippocampus_007")


@pytest.fixture
def checkpoint(tiny_training: TinyTraining) -> Path:
    """Of a tiny transformer."""
    return Path(tiny_training.finished("mae", "primus", 2).output_folder) / "checkpoint_final.pth"


@pytest.fixture
def dataset(shared_data: Path, nnunet_folders: dict[str, str]) -> dict[str, str]:
    """Three real images with their labels, one of them damaged, as data set 4."""
    source = shared_data / "Dataset004_Hippocampus"
    target = Path(nnunet_folders["nnUNet_raw"]) / "Dataset004_Hippocampus"
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (target / part).mkdir(parents=True)
        for case in CASES:
            shutil.copy(source / part / f"{case}{ending}", target / part)
    (target / "imagesTr" / f"{CASES[2]}_0000.nii.gz").write_bytes(b"")
    description = json.loads((source / "dataset.json").read_text())
    (target / "dataset.json").write_text(json.dumps({**description, "numTraining": 3}))
    return nnunet_folders


def test_tables_regions_and_maps(run_command, checkpoint: Path, dataset: dict[str, str], tmp_path: Path) -> None:
    def extract(*flags: object, check: bool = True):
        command = ["nnUNetv2_extract_features", "-pretrained_weights", checkpoint, "-device", "cpu", *flags]
        return run_command(command, dataset, check=check)

    regions = tmp_path / "regions.parquet"
    page = ("--html", tmp_path / "page.html", "--colour", "region")
    said = extract("-d", "4", "-o", regions, "--level", "region", "-np", "2", *page).stdout
    assert "1 image was left out:" in said
    assert f"Features of 2 images: {regions}" in said
    table = pd.read_parquet(regions)
    assert sorted(zip(table["case"], table["region"], strict=True)) == [(c, r) for c in CASES[:2] for r in (1, 2)]
    assert "by region" in (tmp_path / "page.html").read_text()
    assert CASES[2] in json.loads((tmp_path / "regions.parquet.json").read_text())["left_out"]

    images = Path(dataset["nnUNet_raw"]) / "Dataset004_Hippocampus" / "imagesTr"
    extract("-i", images, "-o", tmp_path / "maps", "--level", "patch", "-np", "0")
    case = f"{CASES[0]}_0000.nii.gz"
    feature_map, image = nibabel.load(tmp_path / "maps" / f"{CASES[0]}.nii.gz"), sitk.ReadImage(str(images / case))
    middle = nibabel.affines.apply_affine(feature_map.affine, (np.array(feature_map.shape[:3]) - 1) / 2)
    centre = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    assert middle * [-1, -1, 1] == pytest.approx(centre, abs=0.51)  # padding is even to a voxel

    again = extract("-i", images, "-o", tmp_path / "maps", "--level", "patch", "--overlap", "0.25", check=False)
    assert again.returncode == 1
    assert "extracted otherwise (overlap differ)" in again.stderr

    encoder = nnunet_ssl.load_encoder(checkpoint)
    pooled = encoder.map_of(images / case).pooled()["mean"]
    np.testing.assert_allclose(encoder.embed(images / case), pooled, rtol=1e-6)
    assert pooled.shape == (feature_map.shape[3],)
