"""What the named images of a preview are: which hides what, which lies over which, and what is no image at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from nnunet_ssl.report.geometry import Geometry
from nnunet_ssl.report.planes import Plane, middle_planes, planes_through, to_array


class Kind(Enum):
    """How an entry is drawn."""

    IMAGE = "greys"
    HIDDEN = "a mask of what the network did not see"
    MASK = "a mask of a place"
    LABELS = "colours"
    ERROR = "magnitudes"
    SHARE = "values from 0 to 1"

    @classmethod
    def of(cls, name: str, image: np.ndarray) -> Kind:
        """The kind of an entry, by its name and its type."""
        if image.dtype == bool:
            return cls.HIDDEN if name == "hidden" else cls.MASK
        if np.issubdtype(image.dtype, np.integer):
            return cls.LABELS
        if name == "error" or name.endswith("_error"):
            return cls.ERROR
        return cls.SHARE if name.endswith("_share") else cls.IMAGE


@dataclass
class View:
    """The entries [*spatial] that lie in one row of pictures, as they are displayed.

    hidden: painted over "masked". outlined: drawn around in "corrupted". excluded: where there is no image, by the name of the
    entry, and under "" for all others of its shape.
    """

    entries: dict[str, np.ndarray]
    hidden: np.ndarray | None = None
    outlined: np.ndarray | None = None
    excluded: dict[str, np.ndarray] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [name for name in self.entries if name == "excluded" or name.startswith("excluded_of_")]
        self.excluded = {name.removeprefix("excluded").removeprefix("_of_"): self.entries.pop(name) for name in names}
        self.kinds = {name: Kind.of(name, image) for name, image in self.entries.items()}
        self.hidden = _hidden_of_masked(self.entries)
        if "masked" not in self.entries and "corrupted" in self.entries:
            self.outlined = _fitting_mask(self.entries.get("hidden"), self.entries["corrupted"])

    def striped(self, name: str) -> np.ndarray | None:
        """Where there is no image in an entry."""
        masks = (self.excluded.get(key) for key in (name, name.rpartition("_of_")[2], ""))
        fitting = next((mask for mask in masks if mask is not None and mask.shape == self._shape(name)), None)
        return fitting if fitting is not None and fitting.any() else None

    def hidden_masks(self, columns: Sequence[str]) -> list[np.ndarray]:
        """The masks that are drawn in the colour of what is hidden."""
        own = [self.entries[name] for name in columns if self.kinds[name] is Kind.HIDDEN]
        return own if self.hidden is None else [*own, self.hidden]

    def below(self, name: str) -> np.ndarray | None:
        """The image that a mask is painted over: `x` for one called `..._of_x`, else the first one of its shape."""
        fitting = [n for n in self.entries if self.kinds[n] is Kind.IMAGE and self._shape(n) == self._shape(name)]
        named = name.rpartition("_of_")[2]
        return self.entries[named if named in fitting else fitting[0]] if fitting else None

    def areas(self, name: str) -> np.ndarray | None:
        """The label map whose areas an entry has one value each in."""
        fitting = [n for n in self.entries if self.kinds[n] is Kind.LABELS and self._shape(n) == self._shape(name)]
        return self.entries[fitting[0]] if fitting else None

    def planes(self, name: str) -> list[Plane]:
        """Where to cut an entry: through the middle of the first place that a mask of its shape shows, or its own."""
        places = (n for n in self.entries if self.kinds[n] is Kind.MASK and self._shape(n) == self._shape(name))
        mask = next(places, None)
        return middle_planes(self.entries[name]) if mask is None else planes_through(self.entries[mask])

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape


def views_of(preview: Mapping[str, Any], geometry: Geometry) -> dict[str, View]:
    """The entries of a preview, displayed; under "a" and "b" where all are of two views of the same kind, else under "".

    Raises ValueError for an empty preview and for shapes that cannot be drawn.
    """
    images = {name: _first_channel(name, value) for name, value in preview.items()}
    if not set(images) - {"excluded"}:
        raise ValueError("The preview has no entries, so there is nothing to draw. Give at least one [C, *spatial].")
    if len({image.ndim for image in images.values()}) > 1:
        shapes = ", ".join(f"{name} {image.shape}" for name, image in images.items())
        raise ValueError(f"One picture shows either 2D or 3D images, found {shapes}. Draw two pictures.")
    geometry.require(next(iter(images.values())).ndim)
    images = {name: geometry.displayed(image) for name, image in images.items()}
    pair = {view: {n[:-2]: image for n, image in images.items() if n.endswith(f"_{view}")} for view in "ab"}
    complete = len(pair["a"]) + len(pair["b"]) == len(images)
    shapes_of = [[(name, image.shape) for name, image in entries.items()] for entries in pair.values()]
    whole = pair if complete and shapes_of[0] == shapes_of[1] else {"": images}
    return {view: View(entries) for view, entries in whole.items()}


def channels_of(preview: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    """How many channels each of the named entries has."""
    return {name: len(preview[name] if name in preview else preview[f"{name}_a"]) for name in names}


def _first_channel(name: str, value: Any) -> np.ndarray:
    array = to_array(value)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(
            f"Preview entry {name!r} has shape {array.shape}; expected one sample [C, H, W] or [C, D, H, W]. "
            "Take one sample of the batch."
        )
    return array[0]


def _hidden_of_masked(images: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The mask to paint over "masked": "hidden", or what differs from "input" when all of it has one value."""
    hidden, masked, whole = images.get("hidden"), images.get("masked"), images.get("input")
    if masked is None:
        return None
    if hidden is not None:
        return _fitting_mask(hidden, masked)
    if whole is None or whole.shape != masked.shape:
        return None
    changed = masked != whole
    return changed if len(np.unique(masked[changed])) == 1 else None


def _fitting_mask(mask: np.ndarray | None, image: np.ndarray) -> np.ndarray | None:
    return mask if mask is not None and mask.dtype == bool and mask.shape == image.shape else None
