"""NRRD, MetaImage and the like, by SimpleITK: volumes along a fourth axis or as several values per voxel."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_ssl.corpus.address import MEAN
from nnunet_ssl.corpus.formats.header import Header, index_of, orientation_of, oriented
from nnunet_ssl.errors import UnusableImage

ITK = (".nrrd", ".nhdr", ".mha", ".mhd", ".gipl")
MAX_HEADER = 2**16  # bytes of text before the data of NRRD and MetaImage files
KIND = "NRRD_kinds[pixel]"  # what the values of a voxel are: a list, a vector, a colour, a covariant vector, a tensor
FLIP = np.diag([-1, -1, 1])  # ITK's axes point left and backward where NIfTI's point right and forward
LISTS = ("list", "vector", "???", "none", "")


def header(path: str) -> Header:
    """The header of an image; raises UnusableImage or what SimpleITK raises."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    size, dimensions = reader.GetSize(), reader.GetDimension()
    if not 2 <= dimensions <= 4:
        raise UnusableImage(f"{dimensions}-D: expected a volume or a series of volumes")
    dtype = dtype_of(reader)
    values = reader.GetNumberOfComponents()
    _require_list(reader, dtype)
    _require_all_bytes(path, int(np.prod(size, dtype=np.int64)) * dtype.itemsize * values)
    direction = np.reshape(reader.GetDirection(), (dimensions, dimensions))[:3, :3]
    return Header(
        tuple(int(n) for n in (*size, 1)[:3][::-1]),
        tuple(float(s) for s in (*reader.GetSpacing(), 1.0)[:3][::-1]),
        (int(size[3]) if dimensions == 4 else 1) * values,
        str(dtype),
        orientation_of(FLIP @ direction) if len(direction) == 3 else None,
    )


def read(file: str, volume: str) -> tuple[np.ndarray, dict[str, Any]]:
    """(one volume [1, D, H, W] or the mean of all, {"spacing": [mm]}); raises UnusableImage where there is but one."""
    image = sitk.ReadImage(file)
    series = sitk.GetArrayFromImage(image).astype(np.float32)
    if image.GetNumberOfComponentsPerPixel() > 1:
        series = np.moveaxis(series, -1, 0)
    if series.ndim != 4:
        raise UnusableImage(f"not a series: shape {list(series.shape)}, but {volume!r} of its volumes is asked for")
    spacing = [float(s) for s in image.GetSpacing()[:3][::-1]]
    taken = series.mean(axis=0, keepdims=True) if volume == MEAN else series[index_of(volume, len(series))][np.newaxis]
    direction = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:3, :3]
    return np.ascontiguousarray(taken), {"spacing": spacing, **oriented(FLIP @ direction)}


def dtype_of(reader: sitk.ImageFileReader) -> np.dtype:
    """The type behind ITK's name for it, such as "16-bit signed integer"; raises UnusableImage."""
    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    match = re.match(r"(?:vector of )?(\d+)-bit (float|signed|unsigned)", name)
    if match is None:
        raise UnusableImage(f"not an image of real numbers: {name}")
    kind = {"float": "float", "signed": "int", "unsigned": "uint"}[match[2]]
    return np.dtype(f"{kind}{match[1]}")


def _require_list(reader: sitk.ImageFileReader, dtype: np.dtype) -> None:
    """Raise UnusableImage where several values per voxel are no volumes: colours, directions in space."""
    values = reader.GetNumberOfComponents()
    kind = reader.GetMetaData(KIND).lower() if reader.HasMetaDataKey(KIND) else ""
    # Three values are colours or a direction in space, such as a deformation, unless the file calls them a list.
    ambiguous = kind != "list" and (values == 3 or (values == 4 and dtype == np.uint8))
    if values > 1 and (ambiguous or kind not in LISTS):
        raise UnusableImage(f"a colour or vector image: {values} values per voxel{f' ({kind})' if kind else ''}")
    if values > 1 and reader.GetDimension() > 3:
        raise UnusableImage(f"a series of volumes with {values} values per voxel")


def _require_all_bytes(path: str, expected: int) -> None:
    """Raise UnusableImage when data that follow their header uncompressed are not all in the file."""
    with open(path, "rb") as file:
        head = file.read(MAX_HEADER)
    if path.lower().endswith(".mha") and b"CompressedData = True" not in head:
        end = re.search(rb"ElementDataFile *= *LOCAL\r?\n", head)
    elif path.lower().endswith(".nrrd") and re.search(rb"\nencoding: *raw", head) and b"\ndata file:" not in head:
        end = re.search(rb"\r?\n\r?\n", head)
    else:
        end = None
    size = os.path.getsize(path)
    if end and size < end.end() + expected:
        raise UnusableImage(f"truncated: {size} bytes, the header announces {end.end() + expected}")
