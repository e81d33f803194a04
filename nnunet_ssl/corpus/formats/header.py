"""What a header says, the same for every format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel
import numpy as np

from nnunet_ssl.errors import UnusableImage


@dataclass(frozen=True)
class Header:
    """Shape [D, H, W] in voxels, spacing in mm in the same order, number of volumes, type of the values, orientation."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    volumes: int
    dtype: str
    orientation: str | None


def require_spacing(spacing: Sequence[float]) -> None:
    """Raise UnusableImage unless all numbers [mm] can be distances between voxels."""
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise UnusableImage(f"impossible spacing: {list(spacing)}, expected three numbers above 0 (mm)")


ORIENTATION = "orientation"  # in what our readers note about an image: as `orientation_of` gives it


def orientation_of(matrix: np.ndarray) -> str:
    """Where the three axes of the file point, such as RAS; raises UnusableImage when the matrix [3, 3] says nothing."""
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise UnusableImage("impossible orientation: the matrix in the header is singular or not finite")
    affine = np.eye(4)
    affine[:3, :3] = matrix
    return "".join(nibabel.aff2axcodes(affine))


def oriented(matrix: np.ndarray) -> dict[str, str]:
    """What a reader notes of an image whose file has this matrix [3, 3]: nothing where the matrix says nothing."""
    try:
        return {ORIENTATION: orientation_of(matrix)}
    except UnusableImage:
        return {}


def index_of(volume: str, available: int) -> int:
    """The number of a volume, counted from 0; raises UnusableImage where the file has fewer."""
    if int(volume) >= available:
        raise UnusableImage(f"has {available} volumes, number {volume} (counted from 0) is asked for")
    return int(volume)
