"""A feature map that knows where in its image it lies: pooled over the image or over regions, written for a viewer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.features.placement import Placement
from nnunet_ssl.files.atomic import atomic_path

POOLS = ("mean", "max")
BACKGROUND = 0


@dataclass(frozen=True)
class PlacedMap:
    """Features [C, *grid] of a preprocessed image, on a grid of one position per `stride` voxels.

    before: voxels of padding before the image, per axis. placement: how the preprocessed image lies in its file.
    """

    features: np.ndarray
    stride: tuple[int, ...]
    before: tuple[int, ...]
    placement: Placement

    @property
    def coverage(self) -> np.ndarray:
        """Share of every position's voxels that lie in the image [*grid]; the rest is padding."""
        shares = []
        for number, (by, pad, size) in enumerate(zip(self.stride, self.before, self.placement.shape, strict=True)):
            first = np.arange(self.features.shape[number + 1]) * by
            inside = np.minimum(first + by, pad + size) - np.maximum(first, pad)
            shares.append(np.clip(inside, 0, None) / by)
        return np.multiply.outer(np.multiply.outer(shares[0], shares[1]), shares[2]).astype(np.float32)

    def pooled(self, pool: Sequence[str] = ("mean",)) -> dict[str, np.ndarray]:
        """Features [C] of the whole image.

        "mean" weighs positions by how much of them is image, "max" takes those that are at least half image.
        """
        return _pool(self.features, self.coverage, pool)

    def pooled_in(self, labels: np.ndarray, pool: Sequence[str] = ("mean",)) -> dict[int, dict[str, np.ndarray]]:
        """Features [C] of every region of a label map [*spatial] of the preprocessed image, but for the background.

        "mean" weighs positions by how many of their voxels belong to the region. "max" takes the positions that belong to it at
        least half; of a region so small that none does, those that hold most of it.
        """
        if labels.shape != self.placement.shape:
            raise ValueError(f"labels must have the shape of the image {self.placement.shape}, found {labels.shape}.")
        regions = [int(v) for v in np.unique(labels) if v > BACKGROUND]
        return {v: _pool(self.features, self._shares(labels == v), pool) for v in regions}

    def _shares(self, mask: np.ndarray) -> np.ndarray:
        """Share of every position's voxels that a mask [*spatial] holds [*grid]."""
        grid = self.features.shape[1:]
        whole = np.zeros([n * s for n, s in zip(grid, self.stride, strict=True)], np.float32)
        whole[tuple(slice(b, b + n) for b, n in zip(self.before, mask.shape, strict=True))] = mask
        shape = [n for pair in zip(grid, self.stride, strict=True) for n in pair]
        return whole.reshape(shape).mean(axis=(1, 3, 5))

    @property
    def affine(self) -> np.ndarray:
        """[4, 4]: from an index of `in_file_order` to mm in the patient (RAS+), as NIfTI has it."""
        return self.placement.affine_of_grid(self.stride, self.before)

    def in_file_order(self) -> np.ndarray:
        """Features [x, y, z, C]: axes as in the image's file, channels last."""
        axes = np.argsort(self.placement.transpose)
        return np.moveaxis(self.features.transpose(0, *(axes + 1)), 0, -1).transpose(2, 1, 0, 3)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it as .nii.gz, which viewers lay over the image, or .npz with `features` [C, *grid] and `affine`.

        Raises SettingsError for other endings.
        """
        path = Path(path)
        if path.name.endswith((".nii.gz", ".nii")):
            image = nibabel.Nifti1Image(self.in_file_order().astype(np.float32), self.affine)
            image.header.set_xyzt_units("mm")
            with atomic_path(path, ".nii.gz" if path.name.endswith(".gz") else ".nii") as temporary:
                nibabel.save(image, temporary)
        elif path.suffix == ".npz":
            with atomic_path(path, ".npz") as temporary:
                np.savez(temporary, features=self.features, affine=self.affine, coverage=self.coverage)
        else:
            raise SettingsError(f"Feature maps are written as .nii.gz or .npz, found {path.name}.", found=path.name)


def _pool(features: np.ndarray, weights: np.ndarray, pool: Sequence[str]) -> dict[str, np.ndarray]:
    unknown = [name for name in pool if name not in POOLS]
    if unknown or not pool:
        raise SettingsError(f"Features are pooled by {' and '.join(POOLS)}, found {', '.join(unknown) or 'none'}.")
    found: dict[str, Any] = {}
    for name in pool:
        if name == "mean":
            total = (features.astype(np.float64) * weights).sum(axis=(1, 2, 3))
            found[name] = (total / weights.sum(dtype=np.float64)).astype(np.float32)
        else:
            found[name] = features[:, weights >= min(0.5, float(weights.max()))].max(axis=1)
    return found


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Pooled features of several maps as one vector: map by map, within each of them pool by pool."""
    return np.concatenate([values for part in parts for values in part.values()])


def names_of(parts: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
    """What to call the values of `joined`: mean_0, mean_1, ..., max_0, ..., the numbers going on from map to map."""
    names, first = [], dict.fromkeys(parts[0], 0)
    for part in parts:
        for pool, values in part.items():
            names += [f"{pool}_{first[pool] + n}" for n in range(len(values))]
            first[pool] += len(values)
    return names
