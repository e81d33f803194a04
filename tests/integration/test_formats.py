"""Images of many formats, from the import to the preprocessed file, with the commands a user types."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from image_files import save_dicom, save_nifti

pytestmark = pytest.mark.slow


def test_dicom_units_and_values_that_are_not_finite(nnunet_folders, run_command, tmp_path):
    """A DICOM series, a file in micrometres, an .mgz and an image with Inf become cases of one data set at 1 mm."""
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in (20, 24, 22)], indexing="ij")
    volume = (300.0 * (sum(x * x for x in grid) < 0.6) + np.random.default_rng(0).normal(20, 3, (20, 24, 22))).astype(
        np.float32
    )
    scans = tmp_path / "scans"
    save_dicom(scans / "P1", volume.astype(np.int16), series="1.2.1", patient="P1")
    save_nifti(scans / "P2.nii.gz", volume, "micron")
    nibabel.save(nibabel.MGHImage(volume, np.diag([1.0, 1.5, 2.0, 1.0])), scans / "P3.mgz")
    broken = volume.copy()
    broken[0, 0, 0], broken[1, 1, 1] = np.inf, np.nan
    save_nifti(scans / "P4.nii.gz", broken)
    save_dicom(scans / "gap", volume.astype(np.int16), positions=np.array([[0, 0, n + 5 * (n > 9)] for n in range(20)]))
    imported = run_command(["nnUNetv2_pretrain_import", "-i", scans, "-d", "745", "-n", "Scans"], nnunet_folders)
    assert "4 new images" in imported.stdout
    assert "slices are missing" in imported.stdout
    prepared = run_command(
        ["nnUNetv2_pretrain", "745", "--backbone", "resenc_tiny", "--preprocess-only", "-np", "1"], nnunet_folders
    )
    assert "P4: 2 values are NaN or infinite and count as 0." in prepared.stdout
    folder = Path(nnunet_folders["nnUNet_preprocessed"], "Dataset745_Scans", "nnUNetSSLResEncTinyPlans_3d_fullres")
    sizes = {file.stem: load_pickle(str(file))["spacing"] for file in folder.glob("*.pkl")}
    assert {name: [round(float(s), 3) for s in spacing] for name, spacing in sizes.items()} == {
        "P1_s004_T1_MPRAGE_sag": [2.5, 1.5, 1.0],
        "P2": [2.0, 1.5, 1.0],
        "P3": [2.0, 1.5, 1.0],
        "P4": [2.0, 1.5, 1.0],
    }
