"""Made-up images in the place of the real ones of shared/data, for machines that do not have these.

Same files, shapes, spacings, orientations, types and ranges; what they show is an ellipsoid. `test_import.py` compares the two
where both are there.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np

SEQUENCES = ("FLAIR", "T1w", "T1wCE", "T2w")
HEAD, CT, HIPPOCAMPUS = (280, 320, 22), (122, 101, 30), (35, 50, 36)
CASES = 180


def ellipsoid(shape: tuple[int, ...], radius: float) -> np.ndarray:
    """True within this share of the half axes."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    return sum(a**2 for a in axes) < radius**2


def save(values: np.ndarray, spacing: tuple[float, ...], axes: tuple[int, ...], file: Path) -> None:
    """As compressed NIfTI; axes: signs of the x, y and z axis, (1, 1, 1) for RAS."""
    file.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*(s * a for s, a in zip(spacing, axes, strict=True)), 1.0])
    nibabel.save(nibabel.Nifti1Image(values, affine), file)


def write_twins(folder: Path) -> Path:
    """Write all of them; takes about a second."""
    rng = np.random.default_rng(0)
    head = ellipsoid(HEAD, 0.95)
    for number, name in enumerate(SEQUENCES):
        values = np.where(head, rng.integers(1, 1000 + 200 * number, HEAD), 0)
        kind = np.uint16 if name == "T1wCE" else np.int16
        save(values.astype(kind), (0.6875, 0.6875, 6.5), (-1, -1, 1), folder / f"brain_mri/sub-01_{name}.nii.gz")
    body = np.where(ellipsoid(CT, 0.6), rng.integers(-100, 1200, CT), -1000 + rng.integers(-100, 100, CT))
    save(body.astype(np.int16), (3, 3, 3), (1, 1, 1), folder / "ct/ct_small.nii.gz")
    save(ellipsoid(CT, 0.3).astype(np.uint8), (3, 3, 3), (1, 1, 1), folder / "ct/ct_small_seg.nii.gz")
    data_set = folder / "Dataset004_Hippocampus"
    for case in range(CASES):
        values = rng.integers(50, 2500, HIPPOCAMPUS).astype(np.float32) if case < 2 else np.full((8, 8, 8), case, "f4")
        save(values, (1, 1, 1), (1, 1, 1), data_set / f"imagesTr/hippocampus_{case:03d}_0000.nii.gz")
        labels = ellipsoid(values.shape, 0.5).astype(np.uint8)
        save(labels, (1, 1, 1), (1, 1, 1), data_set / f"labelsTr/hippocampus_{case:03d}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "anterior": 1, "posterior": 2}, "numTraining": CASES,
        "file_ending": ".nii.gz",
    }  # fmt: skip
    (data_set / "dataset.json").write_text(json.dumps(description))
    return folder
