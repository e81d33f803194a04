"""What a NIfTI file means by its numbers: spacings in metres or micrometres, and values that are not finite.

ITK, and so nnU-Net's reader, turns every unit into millimetres and NaN and infinite values of NIfTI files into 0, silently;
nibabel does neither. https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields/nifti1fields_pages/xyzt_units.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel
import numpy as np

MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}  # per unit: metre, millimetre, micrometre; others count as millimetres
NIFTI = (".nii.gz", ".nii")


def millimetres_per_unit(xyzt_units: int) -> float:
    """The length of a NIfTI header's unit of space."""
    return MILLIMETRES.get(int(xyzt_units) & 0x07, 1.0)


def in_millimetres(file: str, spacing: Sequence[float]) -> list[float]:
    """A spacing as nibabel reads it, in mm."""
    unit = millimetres_per_unit(nibabel.load(file).header["xyzt_units"]) if file.lower().endswith(NIFTI) else 1.0
    return [float(s) * unit for s in spacing]


def count_not_finite(file: str) -> int:
    """How many values of a NIfTI file are NaN or infinite; opens its voxels only where they can be."""
    image: Any = nibabel.load(file)
    if image.get_data_dtype().kind != "f":
        return 0
    values = image.dataobj.get_unscaled()
    return int(values.size - np.count_nonzero(np.isfinite(values)))
