"""How an image lies in the patient, and how it is drawn: radiological convention where the orientation is known.

Head or front up; the patient's right on the left of axial and coronal slices, the front on the left of sagittal ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

# Axes of the body in the order in which a picture has them: rows before columns, each growing to its second end.
BODY_AXES = ("SI", "AP", "RL")
PLANES = {"SI": "axial", "AP": "coronal", "RL": "sagittal"}  # by the axis that they are cut across


class Marks(NamedTuple):
    """The sides of the patient at the edges of a slice: R, L, A, P, S (towards the head) or I (towards the feet)."""

    left: str
    right: str
    top: str
    bottom: str


@dataclass(frozen=True)
class Geometry:
    """Orientation and voxel size of an image [*spatial].

    codes: per axis the side of the patient to which its index grows, one of R, L, A, P, S, I; None where nobody knows: the
    image is then drawn as it lies in memory, and its planes have numbers for names. spacing: per axis [mm]; None for
    cubes of unknown size. turned: the image was turned since: it is drawn as if it had not been, without a word on its sides.

    Raises ValueError for codes that no image can have and for a spacing that is not positive.
    """

    codes: tuple[str, ...] | None = None
    spacing: tuple[float, ...] | None = None
    turned: bool = False

    def __post_init__(self) -> None:
        if self.codes is not None:
            known = [axis for code in self.codes for axis in BODY_AXES if len(code) == 1 and code in axis]
            if len(self.codes) not in (2, 3) or len(set(known)) != len(self.codes):
                raise ValueError(f"codes must name different axes of the body, such as SPL, found {self.codes}.")
        if self.spacing is not None and not all(size > 0 for size in self.spacing):
            raise ValueError(f"spacing must be positive [mm], found {list(self.spacing)}.")

    def of_slice(self) -> Geometry:
        """That of a slice across the first axis."""
        return replace(self, codes=self.codes and self.codes[1:], spacing=self.spacing and self.spacing[1:])

    def require(self, ndim: int) -> None:
        """Raise ValueError where images of this geometry do not have `ndim` axes."""
        for name, values in (("spacing", self.spacing), ("codes", self.codes)):
            if values is not None and len(values) != ndim:
                kind = "positive numbers [mm]" if name == "spacing" else "letters"
                raise ValueError(f"{name} must hold {ndim} {kind}, found {list(values)}.")

    def displayed(self, image: np.ndarray) -> np.ndarray:
        """The image with its axes in the order and directions of the pictures."""
        if self.codes is None:
            return image
        order = self._order()
        against = [n for n, a in enumerate(order) if self.codes[a] != _axis(self.codes[a])[1]]
        return np.flip(image.transpose(order), tuple(against))

    def displayed_spacing(self, ndim: int) -> tuple[float, ...]:
        """Voxel size per axis of a displayed image; 1 where it is not known."""
        spacing = self.spacing or (1.0,) * ndim
        return spacing if self.codes is None else tuple(spacing[a] for a in self._order())

    def plane_name(self, axis: int | None) -> str:
        """What to call the slices across an axis of a displayed image; None: the one slice of a 2D image."""
        if self.codes is None or self.turned:
            return "" if axis is None else f"axis {axis if self.codes is None else self._order()[axis]}"
        shown = [_axis(self.codes[a]) for a in self._order()]
        return PLANES[shown[axis] if axis is not None else next(a for a in BODY_AXES if a not in shown)]

    def marks(self, axis: int | None) -> Marks | None:
        """What lies at the edges of a slice across an axis of a displayed image, None where nobody knows."""
        if self.codes is None or self.turned:
            return None
        shown = [_axis(self.codes[a]) for n, a in enumerate(self._order()) if n != axis]
        rows, columns = shown
        return Marks(columns[0], columns[1], rows[0], rows[1])

    def _order(self) -> list[int]:
        codes = self.codes or ()
        return sorted(range(len(codes)), key=lambda a: BODY_AXES.index(_axis(codes[a])))


UNKNOWN = Geometry()


def _axis(code: str) -> str:
    return next(axis for axis in BODY_AXES if code in axis)


def common(geometries: Sequence[Geometry]) -> Geometry:
    """What is true of several images in one picture."""
    first = geometries[0]
    same_codes = all(g.codes == first.codes for g in geometries)
    same_spacing = all(
        g.spacing is not None and first.spacing is not None and np.allclose(g.spacing, first.spacing)
        for g in geometries
    )
    return Geometry(first.codes if same_codes else None, first.spacing if same_spacing else None)
