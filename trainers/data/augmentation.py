"""nnU-Net's rotation, scaling and mirroring, decided before anything is read, so that no voxel is read for nothing.

What was decided is done in `finishing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import create_affine_matrix_2d, create_affine_matrix_3d

from nnunet_ssl.trainers.context import LoaderContext

SCALING = (0.7, 1.4)  # nnU-Net's; larger numbers make objects smaller


@dataclass(frozen=True)
class AffineParams:
    """One sample's rotation (angles in radians, one per axis) and scaling; both at once, as nnU-Net applies them."""

    angles: tuple[float, ...]
    scale: float


def matrix(affine: AffineParams) -> np.ndarray:
    """nnU-Net's matrix [D, D], from voxels of the region to voxels of what is read, both counted from the centre."""
    axes = len(affine.angles)
    if axes == 3:
        return create_affine_matrix_3d(affine.angles, [affine.scale] * 3)
    return create_affine_matrix_2d(affine.angles[-1], [affine.scale] * 2)


@dataclass
class Augmentation:
    """What is to happen to a region of `size` voxels after it was read.

    p: probability of a rotation, and, independently, of a scaling. rotation: range of the angles. in_plane: rotate and
    scale the last two of three axes only. largest: voxels per axis beyond which nothing is read, as in nnU-Net; what
    would lie there is 0. mirror_axes: each is mirrored with probability 0.5.
    """

    size: tuple[int, ...]
    p: float = 0.0
    rotation: tuple[float, float] = (0.0, 0.0)
    in_plane: bool = False
    largest: tuple[int, ...] = ()
    mirror_axes: tuple[int, ...] = ()

    def draw(self) -> AffineParams | None:
        """A sample's rotation and scaling from numpy's global generator; None for neither, as for most samples."""
        rotate, scale = (np.random.uniform() < self.p for _ in range(2))
        if not (rotate or scale):
            return None
        axes = len(self._turned_size())
        angles = tuple(np.random.uniform(*self.rotation) if rotate else 0.0 for _ in range(axes))
        return AffineParams(angles, np.random.uniform(*SCALING) if scale else 1.0)

    def draw_mirrored(self) -> tuple[int, ...]:
        """The axes along which a sample is mirrored, from torch's global generator."""
        return tuple(MirrorTransform(self.mirror_axes).get_parameters()["axes"])

    def read_size(self, affine: AffineParams | None) -> tuple[int, ...]:
        """Voxels to read per axis, around the same centre as the region, so that every one that is needed is there."""
        if affine is None:
            return self.size
        axes = len(affine.angles)
        size, largest = self.size[-axes:], self.largest[-axes:]
        reach = np.abs(matrix(affine)) @ (
            np.array(size) - 1
        )  # distance between the outermost voxels that are looked at
        grown = [s + 2 * ceil((min(r + 1, most) - s) / 2) for s, r, most in zip(size, reach, largest, strict=True)]
        return (*self.size[:-axes], *(max(g, 1) for g in grown))

    def largest_read(self) -> tuple[int, ...]:
        """The most that `read_size` may ask for: one voxel beyond `largest` where that lies unevenly around the region."""
        if not self.p:
            return self.size
        still = len(self.size) - len(self._turned_size())
        grown = zip(self.size[still:], self.largest[still:], strict=True)
        return (*self.size[:still], *(max(s, s + 2 * ceil((most - s) / 2)) for s, most in grown))

    def _turned_size(self) -> tuple[int, ...]:
        return self.size[1:] if self.in_plane else self.size


def augmentation(context: LoaderContext) -> Augmentation:
    """nnU-Net's augmentation as far as the method wants it: its ranges, its probabilities times the method's factor.

    Interpolation is linear, batchgeneratorsv2's way; nnssl's is cubic.
    """
    views = context.views
    rotation, in_plane, read_size, axes = context.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    patch: Sequence[int] = context.configuration_manager.patch_size
    # A region may be larger than the patch it is planned for.
    largest = [ceil(s * max(float(r) / p, 1)) for s, r, p in zip(views.region_size, read_size, patch, strict=True)]
    return Augmentation(
        views.region_size,
        p=min(0.2 * views.rotate_and_scale, 1.0),
        rotation=rotation,
        in_plane=in_plane,
        largest=tuple(largest),
        mirror_axes=tuple(axes) if views.mirror else (),
    )
