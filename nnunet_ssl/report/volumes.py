"""Previews as images that a viewer opens: NIfTI, with the patient's sides and the size of voxels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from nnunet_ssl.files.atomic import atomic_path
from nnunet_ssl.report.geometry import UNKNOWN, Geometry
from nnunet_ssl.report.planes import to_array

TOWARDS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}  # axis and sign in RAS+


def affine_of(geometry: Geometry, axes: int) -> np.ndarray:
    """The affine [4, 4] (voxel to mm, RAS+) of an image with so many axes: sides and sizes; the origin is its first voxel.

    Where the sides are not known, axes count as R, A, S in the order of the file. A slice lies in its plane.
    """
    codes = geometry.codes if geometry.codes is not None and not geometry.turned else ("S", "A", "R")[-axes:]
    spacing = geometry.spacing or (1.0,) * axes
    affine = np.zeros((4, 4))
    for column, (code, size) in enumerate(zip(codes, spacing, strict=True)):
        axis, sign = TOWARDS[code]
        affine[axis, column] = sign * size
    free = [axis for axis in range(3) if not affine[axis].any()]
    for column, axis in zip(range(axes, 3), free, strict=True):
        affine[axis, column] = 1.0
    affine[3, 3] = 1.0
    return affine


def write_volumes(preview: Mapping[str, Any], folder: str | os.PathLike[str], geometry: Geometry = UNKNOWN) -> None:
    """Write every entry [C, *spatial] of a preview as `NAME.nii.gz` into a folder; several channels become a fourth axis.

    Masks and label maps are whole numbers. Images lie as they are stored, on one grid where they have one shape: a viewer shows
    them over each other. Where in the scanner the patch lay is not kept.
    """
    os.makedirs(folder, exist_ok=True)
    for name, value in preview.items():
        array = to_array(value)
        axes = array.ndim - 1
        geometry.require(axes)
        array = np.moveaxis(array, 0, -1)
        if axes == 2:
            array = array[:, :, None]
        array = array[..., 0] if array.shape[-1] == 1 else array
        whole = array.dtype == bool or np.issubdtype(array.dtype, np.integer)
        image = nibabel.Nifti1Image(array.astype(np.int16 if whole else np.float32), affine_of(geometry, axes))
        known = geometry.codes is not None and not geometry.turned
        image.header.set_xyzt_units("mm" if geometry.spacing else "unknown")
        image.set_qform(image.affine, code=1 if known else 0)
        image.set_sform(image.affine, code=1 if known else 0)
        with atomic_path(Path(folder, f"{name}.nii.gz"), ".nii.gz") as temporary:
            nibabel.save(image, temporary)
