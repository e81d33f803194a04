"""nnU-Net's rotation, scaling and mirroring, decided before anything is read, so that no voxel is read for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import (
    SpatialTransform,
    create_affine_matrix_2d,
    create_affine_matrix_3d,
)
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from torch import Tensor

if TYPE_CHECKING:
    from nnunet_ssl.trainers.ssl_trainer import SSLTrainer

SCALING = (0.7, 1.4)  # nnU-Net's; larger numbers make objects smaller


@dataclass(frozen=True)
class Turn:
    """One sample's rotation (angles in radians, one per axis) and scaling; both at once, as nnU-Net applies them."""

    angles: tuple[float, ...]
    scale: float


class Affine(SpatialTransform):
    """nnU-Net's rotation and scaling around the centre, without what only its elastic deformation needs.

    Scaling alone is a product of matrices, axis by axis; nnU-Net looks every voxel up.
    """

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__(size, patch_center_dist_from_border=0, random_crop=False, border_mode_seg="zeros")
        self.turn = Turn((), 1.0)

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        """The places to look at, on `grid_sample`'s axes: x, y and z from -1 to 1 between the outer borders."""
        if not any(self.turn.angles) and "segmentation" not in data:
            return {"grid": None}
        read = data["image"].shape[1:]
        places = _centred(self.patch_size)
        grid = torch.empty(*self.patch_size, len(read))
        for axis, row in enumerate(matrix(self.turn)):
            along = [float(m) * p / (read[axis] / 2) for m, p in zip(row, places, strict=True)]
            torch.add(sum(along[1:-1], along[0]), along[-1], out=grid[..., len(read) - 1 - axis])
        return {"grid": grid}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        if any(self.turn.angles):
            return super()._apply_to_image(img, **params)
        for axis, size in enumerate(self.patch_size, start=1):
            matrix = torch.from_numpy(_interpolation(img.shape[axis], size, self.turn.scale))
            img = (img.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
        return img.contiguous()


def matrix(turn: Turn) -> np.ndarray:
    """nnU-Net's matrix [D, D], from voxels of the region to voxels of what is read, both counted from the centre."""
    axes = len(turn.angles)
    if axes == 3:
        return create_affine_matrix_3d(turn.angles, [turn.scale] * 3)
    return create_affine_matrix_2d(turn.angles[-1], [turn.scale] * 2)


def _centred(size: Sequence[int]) -> list[Tensor]:
    """Voxels of each axis counted from the centre, shaped to broadcast."""
    return [
        (torch.arange(n) - (n - 1) / 2).view(*(n if a == axis else 1 for a in range(len(size))))
        for axis, n in enumerate(size)
    ]


def _interpolation(read: int, size: int, scale: float) -> np.ndarray:
    """Linear interpolation of an axis of `read` voxels at `size` places around its centre: float32 [size, read]."""
    place = (np.arange(size) - (size - 1) / 2) * scale + (read - 1) / 2
    return (1 - abs(place[:, None] - np.arange(read))).clip(min=0).astype(np.float32)


@dataclass
class Augmentation:
    """What happens to a region of `size` voxels after it was read.

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
    _affine: Affine | None = field(default=None, init=False)
    _spatial: list[Any] = field(default_factory=list, init=False)
    _mirror: MirrorTransform | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.mirror_axes:
            self._mirror = MirrorTransform(allowed_axes=self.mirror_axes)
        if not self.p:
            return
        self._affine = Affine(self._turned_size())
        self._spatial = (
            [Convert3DTo2DTransform(), self._affine, Convert2DTo3DTransform()] if self.in_plane else [self._affine]
        )

    def draw(self) -> Turn | None:
        """A sample's rotation and scaling from numpy's global generator; None for neither, as for most samples."""
        rotate, scale = (np.random.uniform() < self.p for _ in range(2))
        if not (rotate or scale):
            return None
        axes = len(self._turned_size())
        angles = tuple(np.random.uniform(*self.rotation) if rotate else 0.0 for _ in range(axes))
        return Turn(angles, np.random.uniform(*SCALING) if scale else 1.0)

    def read_size(self, turn: Turn | None) -> tuple[int, ...]:
        """Voxels to read per axis, around the same centre as the region, so that every one that is needed is there."""
        if turn is None:
            return self.size
        axes = len(turn.angles)
        size, largest = self.size[-axes:], self.largest[-axes:]
        reach = np.abs(matrix(turn)) @ (np.array(size) - 1)  # distance between the outermost voxels that are looked at
        grown = [s + 2 * ceil((min(r + 1, most) - s) / 2) for s, r, most in zip(size, reach, largest, strict=True)]
        return (*self.size[:-axes], *(max(g, 1) for g in grown))

    def apply(self, image: Tensor, excluded: Tensor | None, turn: Turn | None) -> tuple[Tensor, Tensor | None]:
        """Image [C, *size] and excluded [1, *size] (int16) from what was read."""
        data: dict[str, Tensor] = {"image": image} | ({} if excluded is None else {"segmentation": excluded})
        if turn is not None:
            assert self._affine is not None
            self._affine.turn = turn
            for transform in self._spatial:
                data = transform(**data)
        if self._mirror is not None:
            data = self._mirror(**data)
        return data["image"], data.get("segmentation")

    def _turned_size(self) -> tuple[int, ...]:
        return self.size[1:] if self.in_plane else self.size


def augmentation(trainer: SSLTrainer) -> Augmentation:
    """nnU-Net's augmentation as far as the method wants it: its ranges, its probabilities times the method's factor.

    Interpolation is linear, batchgeneratorsv2's way; nnssl's is cubic.
    """
    views = trainer.views
    rotation, in_plane, read_size, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    patch: Sequence[int] = trainer.configuration_manager.patch_size
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
