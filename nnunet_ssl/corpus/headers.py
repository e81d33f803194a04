"""What the headers of images say: shape, spacing, type; read in threads, without the images themselves."""

from __future__ import annotations

import gzip
import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from tqdm import tqdm

from nnunet_ssl.corpus.check import shape_text
from nnunet_ssl.corpus.errors import UnusableImage
from nnunet_ssl.corpus.reader import NIFTI, TIFF, tiff_spacing
from nnunet_ssl.corpus.reading import cut_off, damage, describe_failure

CHUNK = 128  # files per task of a thread
MAX_HEADER = 2**16  # bytes of text before the data of NRRD and MetaImage files


@dataclass(frozen=True)
class Header:
    """Shape [D, H, W] in voxels, spacing in mm in the same order, number of volumes, type of the values, orientation."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    volumes: int
    dtype: str
    orientation: str | None


def read_header(path: str) -> Header:
    """The header of an image; raises UnusableImage with the reason when it cannot be right."""
    try:
        lower = path.lower()
        header = _nifti(path) if lower.endswith(NIFTI) else _tiff(path) if lower.endswith(TIFF) else _itk(path)
    except UnusableImage:
        raise
    except Exception as error:  # every library has its own ways to fail on a broken file
        raise UnusableImage(damage(path) or describe_failure(error)) from error
    if min(header.shape) < 1 or header.volumes < 1:
        raise UnusableImage(f"no voxels: {shape_text(header.shape)}")
    _require_spacing(header.spacing)
    return header


def read_headers(paths: Sequence[str], num_threads: int, show_progress: bool = True) -> Iterator[Header | str]:
    """The header of every image, or the reason why it is unusable, in the order of `paths`."""

    def read_chunk(chunk: list[str]) -> list[Header | str]:
        return [_header_or_reason(path) for path in chunk]

    iterator = iter(paths)
    chunks = iter(lambda: list(islice(iterator, CHUNK)), [])
    with (
        ThreadPoolExecutor(max(1, num_threads)) as pool,
        tqdm(desc="Reading headers", total=len(paths), disable=not (show_progress and len(paths))) as bar,
    ):
        for results in pool.map(read_chunk, chunks):
            bar.update(len(results))
            yield from results


def _header_or_reason(path: str) -> Header | str:
    try:
        return read_header(path)
    except UnusableImage as error:
        return str(error)


def _nifti(path: str) -> Header:
    # Not by nibabel.load: it repairs spacings of 0, so that nobody would see them.
    with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as file:
        block = file.read(Nifti2Header.sizeof_hdr)
    if len(block) < Nifti1Header.sizeof_hdr:
        raise UnusableImage(damage(path) or f"cannot be read: {len(block)} bytes, less than a NIfTI header")
    second = 540 in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big"))
    kind = Nifti2Header if second else Nifti1Header
    header: Any = kind(block[: kind.sizeof_hdr], check=False)
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise UnusableImage("cannot be read: it does not begin with a NIfTI header")
    shape = tuple(int(n) for n in header.get_data_shape())
    reason = cut_off(path, int(header["vox_offset"]) + math.prod(shape) * header.get_data_dtype().itemsize)
    if reason:
        raise UnusableImage(reason)
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 4:
        raise UnusableImage(f"{len(shape)}-D: shape {list(shape)}, expected a volume or a series of volumes")
    if header.get_data_dtype().fields is not None:
        raise UnusableImage("a colour image: several values per voxel")
    spacing = [float(s) for s in (*header["pixdim"][1 : 1 + min(len(shape), 3)], 1.0)[:3]]
    _require_spacing(spacing)  # the orientation below is made of it
    return Header(
        tuple((*shape, 1)[:3][::-1]),
        tuple(spacing[::-1]),
        shape[3] if len(shape) == 4 else 1,
        str(header.get_data_dtype().newbyteorder("=")),
        _orientation(np.asarray(header.get_best_affine())[:3, :3]),
    )


def _itk(path: str) -> Header:
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    size, dimensions = reader.GetSize(), reader.GetDimension()
    if reader.GetNumberOfComponents() > 1:
        raise UnusableImage(f"a colour or vector image: {reader.GetNumberOfComponents()} values per voxel")
    if not 2 <= dimensions <= 4:
        raise UnusableImage(f"{dimensions}-D: expected a volume or a series of volumes")
    dtype = _dtype(sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    _require_all_bytes(path, int(np.prod(size, dtype=np.int64)) * dtype.itemsize)
    direction = np.reshape(reader.GetDirection(), (dimensions, dimensions))[:3, :3]
    # ITK's axes point left and backward where NIfTI's point right and forward.
    flip = np.diag([-1, -1, 1])[: len(direction), : len(direction)]
    return Header(
        tuple(int(n) for n in (*size, 1)[:3][::-1]),
        tuple(float(s) for s in (*reader.GetSpacing(), 1.0)[:3][::-1]),
        int(size[3]) if dimensions == 4 else 1,
        str(dtype),
        _orientation(flip @ direction) if len(direction) == 3 else None,
    )


def _tiff(path: str) -> Header:
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        shape, dtype = series.shape, series.dtype
        last = max(offset + count for page in series.pages for offset, count in _extents(page))
    if len(shape) != 3:
        raise UnusableImage(f"not a volume: shape {list(shape)}, expected [depth, height, width]")
    if os.path.getsize(path) < last:
        raise UnusableImage(f"truncated: {os.path.getsize(path)} bytes, the header announces {last}")
    spacing = tiff_spacing(path) or [1.0, 1.0, 1.0]
    return Header(tuple(int(n) for n in shape), tuple(spacing), 1, str(np.dtype(dtype)), None)


def _extents(page: Any) -> Iterator[tuple[int, int]]:
    page = page.keyframe if page is not None and not hasattr(page, "dataoffsets") else page
    if page is not None:
        yield from zip(page.dataoffsets, page.databytecounts, strict=True)


def _require_spacing(spacing: Sequence[float]) -> None:
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise UnusableImage(f"impossible spacing: {list(spacing)}, expected three numbers above 0 (mm)")


def _orientation(matrix: np.ndarray) -> str:
    """Where the three axes of the file point, such as RAS; raises UnusableImage when the matrix [3, 3] says nothing."""
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise UnusableImage("impossible orientation: the matrix in the header is singular or not finite")
    affine = np.eye(4)
    affine[:3, :3] = matrix
    return "".join(nibabel.aff2axcodes(affine))


def _dtype(name: str) -> np.dtype:
    """The type behind ITK's name for it, such as "16-bit signed integer"."""
    match = re.match(r"(\d+)-bit (float|signed|unsigned)", name)
    if match is None:
        raise UnusableImage(f"not an image of real numbers: {name}")
    kind = {"float": "float", "signed": "int", "unsigned": "uint"}[match[2]]
    return np.dtype(f"{kind}{match[1]}")


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
