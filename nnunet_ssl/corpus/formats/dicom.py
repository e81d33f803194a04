"""DICOM: a file stands for its series, the files of its folder with the same series number (UID), as one volume.

By SimpleITK (GDCM), which comes with nnU-Net and reads compressed files; nothing is converted or copied. It would make a
volume of slices with gaps, of a tilted gantry, and of several volumes at once as well, with a wrong geometry: such series
are refused with the reason, and dcm2niix named, which knows the vendors' ways.
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.2.html (image plane module)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_ssl.corpus.formats.header import Header, orientation_of
from nnunet_ssl.corpus.formats.itk import dtype_of
from nnunet_ssl.errors import UnusableImage

ENDINGS = (".dcm", ".dicom", ".ima")
UNEVEN = 0.05  # of the distance between slices: rounding of positions and moving tables stay below
TILT = 0.01  # sine of the angle between the slices' normal and the line through their origins; 0.6 degrees
CONVERT = "convert the series with dcm2niix, which knows the vendors' ways"
POSITION, ORIENTATION, SERIES, MODALITY = "0020|0032", "0020|0037", "0020|000e", "0008|0060"


@dataclass(frozen=True)
class Slice:
    """A file of a series: where its first voxel lies and where its rows and columns point [mm], None where it says not."""

    file: str
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None

    @property
    def place(self) -> float:
        """Where the slice lies along its own normal [mm]."""
        if self.position is None or self.orientation is None:
            return 0.0
        return float(np.dot(np.cross(self.orientation[:3], self.orientation[3:]), self.position))


def is_dicom(path: str) -> bool:
    """Whether a file is DICOM: by its ending, or by its first bytes where it has none."""
    name = os.path.basename(path)
    if name.lower().endswith(ENDINGS):
        return True
    if os.path.splitext(name)[1].strip(".0123456789"):
        return False  # 1.2.840.113619 and IM0001 are names without an ending
    try:
        with open(path, "rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_in(folder: str) -> dict[str, tuple[Slice, ...]]:
    """{series UID: its slices in their order} of the DICOM images in a folder, without those below it."""
    return _series_in(folder, os.stat(folder).st_mtime_ns)


def series_tags(file: str) -> dict[str, str]:
    """The tags of a file, such as {"0008|0060": "MR"}; raises what SimpleITK raises."""
    reader = _open(file)
    tags = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys() if "|" in key}
    return {key: text.encode("utf-8", "replace").decode().strip(" \0") for key, text in tags.items()}


def header(path: str) -> Header:
    """The header of the volume that a file's series makes; raises UnusableImage."""
    slices = _series_of(path)
    reader = _open(slices[0].file)
    if reader.GetNumberOfComponents() > 1:
        raise UnusableImage(f"a colour image: {reader.GetNumberOfComponents()} values per voxel")
    size, direction = reader.GetSize(), np.reshape(reader.GetDirection(), (reader.GetDimension(),) * 2)[:3, :3]
    across = [float(s) for s in reader.GetSpacing()[:3]]
    if len(slices) == 1:
        if len(size) < 3 or size[2] < 2:
            raise UnusableImage("a single slice, expected a series of slices in the same folder")
        depth = int(size[2])
    else:
        across[2:], depth = [_distance(slices)], len(slices)
    return Header(
        (depth, int(size[1]), int(size[0])),
        tuple(across[::-1]),
        1,
        str(dtype_of(reader)),
        orientation_of(np.diag([-1, -1, 1]) @ direction),
    )


def read(path: str) -> tuple[np.ndarray, dict[str, Any]]:
    """(volume [1, D, H, W], {"spacing": [mm], "orientation"}) of a file's series; raises UnusableImage."""
    expected = header(path)
    files = [piece.file for piece in _series_of(path)]
    image = sitk.ReadImage(files if len(files) > 1 else files[0])
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    return array.reshape(1, *expected.shape), {"spacing": list(expected.spacing), "orientation": expected.orientation}


@lru_cache(maxsize=4)
def _series_in(folder: str, _changed: int) -> dict[str, tuple[Slice, ...]]:
    # Not by GetGDCMSeriesIDs: one odd file among thousands, such as a dose, and it raises for all of them.
    found: dict[str, list[Slice]] = {}
    for name in sorted(os.listdir(folder)):
        file = os.path.join(folder, name)
        if not os.path.isfile(file) or not is_dicom(file):
            continue
        try:
            tags = series_tags(file)
        except RuntimeError:
            continue  # no image; whoever names it gets the reason
        piece = Slice(file, _numbers(tags.get(POSITION), 3), _numbers(tags.get(ORIENTATION), 6))
        found.setdefault(tags.get(SERIES) or file, []).append(piece)
    return {uid: tuple(sorted(pieces, key=lambda piece: piece.place)) for uid, pieces in found.items()}


def _series_of(path: str) -> tuple[Slice, ...]:
    wanted = os.path.abspath(path)
    for slices in series_in(os.path.dirname(wanted)).values():
        if any(piece.file == wanted for piece in slices):
            return slices
    return (Slice(wanted, None, None),)  # no image of a series; the reader says what is wrong with it


def _numbers(text: str | None, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(n) for n in (text or "").split("\\"))
    except ValueError:
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _open(file: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return reader


def _distance(slices: tuple[Slice, ...]) -> float:
    """Between the slices [mm]; raises UnusableImage where they make no even stack."""
    silent = next((piece for piece in slices if piece.position is None or piece.orientation is None), None)
    if silent is not None:
        raise UnusableImage(f"the slice {os.path.basename(silent.file)} does not say where it lies; {CONVERT}")
    orientations = np.array([piece.orientation for piece in slices])
    if np.abs(orientations - orientations[0]).max() > TILT:
        raise UnusableImage(f"its slices lie at angles to each other, as localisers do; {CONVERT}")
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    steps = np.diff(np.array([piece.position for piece in slices]), axis=0)
    along = steps @ normal
    if (along < 1e-3).any():
        raise UnusableImage(
            f"several slices at the same place: {len(slices)} slices at {1 + int((along >= 1e-3).sum())} places, as in series "
            f"of several volumes or directions; {CONVERT}"
        )
    distance = float(np.median(along))
    if np.abs(along - distance).max() > UNEVEN * distance:
        raise UnusableImage(
            f"the distances between its slices differ, from {along.min():g} to {along.max():g} mm: slices are missing, or the "
            f"series holds several volumes; {CONVERT}"
        )
    across = np.linalg.norm(steps - np.outer(along, normal), axis=1)
    if (across > TILT * along).any():
        raise UnusableImage(f"its slices are shifted against each other, as with a tilted gantry; {CONVERT}")
    return distance
