"""Where a preprocessed image lies in its file, and its file in the patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Placement:
    """What preprocessing did to the axes of an image. All but `affine` in the order of the preprocessed axes.

    shape: of the preprocessed image [voxels]. cropped: that of the region it was resampled from, whose first voxel in the image
    is `corner`. transpose: which axis of the array each of them was. affine: [4, 4], voxel (x, y, z) of the file to mm, RAS+.
    """

    shape: tuple[int, ...]
    cropped: tuple[int, ...]
    corner: tuple[int, ...]
    transpose: tuple[int, ...]
    affine: np.ndarray

    @classmethod
    def read(cls, properties: Mapping[str, Any], shape: Sequence[int], transpose: Sequence[int]) -> Placement:
        """From what nnU-Net's readers and preprocessing note."""
        return cls(
            shape=tuple(int(n) for n in shape),
            cropped=tuple(int(n) for n in properties["shape_after_cropping_and_before_resampling"]),
            corner=tuple(int(first) for first, _ in properties["bbox_used_for_cropping"]),
            transpose=tuple(int(axis) for axis in transpose),
            affine=affine_of_file(properties),
        )

    def affine_of_grid(self, stride: Sequence[int], before: Sequence[int]) -> np.ndarray:
        """[4, 4]: index (x, y, z) of a grid with a position per `stride` voxels of the padded image to mm, RAS+.

        before: voxels of padding. Voxels are boxes, and so are positions: an index stands for the middle of its box; resampling
        keeps the borders of the image in place.
        """
        to_voxel = np.eye(4)
        for axis, array_axis in enumerate(self.transpose):
            scale = self.cropped[axis] / self.shape[axis]
            file_axis = 2 - array_axis
            to_voxel[file_axis, file_axis] = stride[axis] * scale
            to_voxel[file_axis, 3] = self.corner[axis] + (0.5 * stride[axis] - before[axis]) * scale - 0.5
        return self.affine @ to_voxel


def affine_of_file(properties: Mapping[str, Any]) -> np.ndarray:
    """Voxel (x, y, z) to mm, RAS+, from what nnU-Net's readers note; of files that say no more, the spacing alone."""
    if "sitk_stuff" in properties:
        noted = properties["sitk_stuff"]
        spacing, origin = np.asarray(noted["spacing"], float), np.asarray(noted["origin"], float)
        direction = np.asarray(noted["direction"], float)
        axes = round(direction.size**0.5)
        affine, turned, first = np.eye(4), np.eye(3), np.zeros(3)
        turned[:axes, :axes] = direction.reshape(axes, axes)
        first[:axes] = origin
        sizes = np.append(spacing, [1.0] * (3 - axes))
        affine[:3, :3] = LPS_TO_RAS @ turned @ np.diag(sizes)
        affine[:3, 3] = LPS_TO_RAS @ first
        return affine
    if "nibabel_stuff" in properties:
        noted = properties["nibabel_stuff"]
        name = "reoriented_affine" if "reoriented_affine" in noted else "original_affine"
        return np.asarray(noted[name], float)
    return np.diag([*map(float, properties["spacing"][::-1]), 1.0])
