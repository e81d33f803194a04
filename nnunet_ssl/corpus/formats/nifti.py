"""NIfTI, one file or a pair of .hdr and .img, and MGH files of FreeSurfer, by nibabel."""

from __future__ import annotations

import gzip
import math
from os.path import isfile
from typing import Any

import nibabel
import numpy as np
from nibabel.analyze import AnalyzeHeader
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from nnunet_ssl.corpus.address import MEAN
from nnunet_ssl.corpus.formats.header import Header, index_of, orientation_of, oriented, require_spacing
from nnunet_ssl.corpus.formats.units import NIFTI, in_millimetres, millimetres_per_unit
from nnunet_ssl.corpus.reading import cut_off, damage
from nnunet_ssl.errors import UnusableImage

MGH = (".mgz", ".mgh")
PAIR = (".hdr", ".img")
VECTORS = (1006, 1007)  # intents: displacement field, vector
FEW, MANY = 16, 24  # voxels: an axis of fewer in front of longer ones, and a last axis of more, is no axis of space


def header(path: str) -> Header:
    """The header of a NIfTI file; raises UnusableImage."""
    # Not by nibabel.load: it repairs spacings of 0, so that nobody would see them.
    lower = path.lower()
    first, voxels = (_half(path, ".hdr"), _half(path, ".img")) if lower.endswith(PAIR) else (path, path)
    with gzip.open(first) if lower.endswith(".gz") else open(first, "rb") as file:
        block = file.read(Nifti2Header.sizeof_hdr)
    if len(block) < Nifti1Header.sizeof_hdr:
        raise UnusableImage(damage(first) or f"cannot be read: {len(block)} bytes, less than a NIfTI header")
    found = _kind(block, pair=first != voxels)
    shape = tuple(int(n) for n in found.get_data_shape())
    offset = int(found["vox_offset"])
    reason = cut_off(voxels, offset + math.prod(shape) * found.get_data_dtype().itemsize)
    if reason:
        raise UnusableImage(reason)
    if found.get_data_dtype().fields is not None:
        raise UnusableImage("a colour image: several values per voxel")
    three, volumes = _split(shape, _intent(found))
    unit = millimetres_per_unit(found["xyzt_units"]) if "xyzt_units" in found.keys() else 1.0  # noqa: SIM118  no mapping
    spacing = [float(s) * unit for s in (*found["pixdim"][1 : 1 + len(three)], 1.0)[:3]]
    require_spacing(spacing)  # the orientation below is made of it
    return Header(
        tuple((*three, 1)[:3][::-1]),
        tuple(spacing[::-1]),
        volumes,
        str(found.get_data_dtype().newbyteorder("=")),
        orientation_of(np.asarray(found.get_best_affine())[:3, :3]),
    )


def mgh_header(path: str) -> Header:
    """The header of an MGH file; raises UnusableImage or what nibabel raises."""
    image: Any = nibabel.load(path)
    three, volumes = _split(tuple(int(n) for n in image.shape))
    spacing = tuple(float(s) for s in image.header.get_zooms()[:3][::-1])
    dtype = str(image.get_data_dtype().newbyteorder("="))
    return Header(three[::-1], spacing, volumes, dtype, orientation_of(image.affine[:3, :3]))


def read(file: str, volume: str | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """(one volume [1, D, H, W], the mean of all, or all [T, D, H, W]; {"spacing": [mm], "orientation"}); raises UnusableImage.

    nibabel unpacks no more of the file than it must, and the mean keeps one volume in memory.
    """
    image: Any = nibabel.load(file, keep_file_open=True)
    three, volumes = _split(tuple(int(n) for n in image.shape), _intent(image.header))
    series = len(image.shape) > len(three)
    if volume is not None and not series:
        raise UnusableImage(f"not a series: shape {list(image.shape)}, but {volume!r} of its volumes is asked for")

    def one(number: int) -> np.ndarray:
        # Along whichever of the last axes is longer than 1.
        index = tuple(number if length > 1 else 0 for length in image.shape[3:])
        return np.asarray(image.dataobj[(slice(None),) * 3 + index]).reshape(three)

    if not series:
        array = np.asarray(image.dataobj).reshape(three)[..., None]
    elif volume == MEAN:
        total = np.zeros(three, np.float64)
        for number in range(volumes):
            total += one(number)
        array = (total / volumes)[..., None]
    else:
        numbers = range(volumes) if volume is None else [index_of(volume, volumes)]
        array = np.stack([one(number) for number in numbers], axis=-1)
    spacing = in_millimetres(file, [float(s) for s in image.header.get_zooms()[:3][::-1]])
    return np.ascontiguousarray(array.T, dtype=np.float32), {"spacing": spacing, **oriented(image.affine[:3, :3])}


def _intent(header: Any) -> int:
    """What the values of a voxel are; Analyze and MGH headers do not say."""
    return int(header["intent_code"]) if "intent_code" in header.keys() else 0  # noqa: SIM118  no mapping


def _kind(block: bytes, pair: bool) -> Any:
    """The header in the first bytes of a file; raises UnusableImage when it is none."""
    second = 540 in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big"))
    kind = Nifti2Header if second else Nifti1Header
    found: Any = kind(block[: kind.sizeof_hdr], check=False)
    magic = bytes(found["magic"])[:3]
    if pair and magic not in (b"ni1", b"ni2"):
        if 348 not in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")):
            raise UnusableImage("cannot be read: it does not begin with an Analyze or NIfTI header")
        return AnalyzeHeader(block[: AnalyzeHeader.sizeof_hdr], check=False)
    if not pair and magic not in (b"n+1", b"n+2"):
        raise UnusableImage("cannot be read: it does not begin with a NIfTI header")
    return found


def _split(shape: tuple[int, ...], intent: int = 0) -> tuple[tuple[int, ...], int]:
    """(voxels of a volume in the file's order, number of volumes); raises UnusableImage where that cannot be told."""
    inner, outer = shape[:3], [n for n in shape[3:] if n != 1]
    if len(shape) < 2 or len(outer) > 1:
        raise UnusableImage(f"{len(shape)}-D: shape {list(shape)}, expected a volume or a series of volumes")
    volumes = outer[0] if outer else 1
    if intent in VECTORS and volumes == 3:
        raise UnusableImage("a field of vectors, such as a deformation: three values per voxel")
    if outer and inner[0] <= FEW and volumes >= MANY and min((*inner[1:], volumes)) >= 2 * inner[0]:
        raise UnusableImage(
            f"4-D with its volumes along the first axis, it seems: shape {list(shape)}, expected [x, y, z, volumes]. Its "
            "spacing then belongs to other axes. Save it anew with numpy.moveaxis(array, 0, -1) and the right affine"
        )
    return inner, volumes


def _half(path: str, ending: str) -> str:
    """The .hdr or the .img of a pair, whichever of the two was named; raises UnusableImage where it is missing."""
    stem = path[:-4]
    for candidate in (stem + ending, stem + ending.upper()):
        if isfile(candidate):
            return candidate
    raise UnusableImage(f"half of a pair: there is no {stem}{ending}")


__all__ = ["MGH", "NIFTI", "PAIR", "header", "mgh_header", "read"]
