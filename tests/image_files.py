"""Image files for tests: NIfTI in any unit of length, DICOM series."""

from __future__ import annotations

import locale
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk

SPACING = (1.0, 1.5, 2.0)  # mm, of the axes in the file's order
UNITS = {"mm": 1.0, "micron": 1000.0, "meter": 0.001, "unknown": 1.0}


def save_nifti(path: Path, array: np.ndarray, unit: str = "mm", kind: Any = nibabel.Nifti1Image) -> str:
    image = kind(array, np.diag([*(s * UNITS[unit] for s in SPACING), 1.0]))
    image.header.set_xyzt_units(unit, "sec")
    nibabel.save(image, path)
    return str(path)


def save_dicom(
    folder: Path, array: np.ndarray, *, positions: np.ndarray | None = None, series: str = "1.2.3", **tags: str
) -> None:
    """An axial series of slices as files without an ending, in no order of the slices; at most 31."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    if positions is None:
        positions = np.array([[0.0, 0.0, 2.5 * n] for n in range(len(array))])
    names = {"modality": "0008|0060", "patient": "0010|0020", "date": "0008|0020", "description": "0008|103e"}
    common = {"modality": "MR", "patient": "P7", "date": "20190303", "description": "T1 MPRAGE sag"} | tags
    for number in np.random.default_rng(0).permutation(len(array)):
        image = sitk.GetImageFromArray(array[number])
        image.SetSpacing((1.0, 1.5))
        for name, value in common.items():
            image.SetMetaData(names[name], value)
        image.SetMetaData("0020|000e", series)
        image.SetMetaData("0020|000d", "1.2")
        image.SetMetaData("0008|0018", f"{series}.{number}")
        image.SetMetaData("0020|0011", "4")
        image.SetMetaData("0020|0032", "\\".join(f"{x:g}" for x in positions[number]))
        image.SetMetaData("0020|0037", "1\\0\\0\\0\\1\\0")
        image.SetMetaData("0020|0013", str(number))
        target = folder / f"{series.replace('.', '')}_{(number * 7) % 31}.dcm"
        writer.SetFileName(str(target))
        before = locale.setlocale(locale.LC_CTYPE)
        writer.Execute(image)
        locale.setlocale(locale.LC_CTYPE, before)  # GDCM, writing, leaves the process in the locale "C"
        target.rename(target.with_suffix(""))
