"""What was read becomes what a method sees: turned, scaled and mirrored as was decided, in single precision.

On a GPU that takes no time, on a CPU most of what a sample costs. So where a GPU trains, reading processes send what they read as
it is, and `finish` does the rest on the device; elsewhere they call `finish_box` themselves. Both do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from nnunet_ssl.trainers.data.augmentation import AffineParams, matrix
from nnunet_ssl.trainers.data.corpus import beyond
from nnunet_ssl.views.host import to_device


@dataclass(frozen=True)
class Box:
    """What was read for one region, and what is still to be done to it.

    image [C, *read], of the type it is stored in; excluded, bool [1, *read], or None where no voxel is; affine: rotation and
    scaling, None for neither, and then the box is the region; mirrored: axes of the region; extent: what of the box lies in the
    image, (first, behind the last) voxel per axis, None for all of it.
    """

    image: Tensor
    excluded: Tensor | None
    affine: AffineParams | None
    mirrored: tuple[int, ...]
    extent: tuple[tuple[int, int], ...] | None = None

    @property
    def covered(self) -> tuple[tuple[int, int], ...]:
        """The extent, also where it is all of the box."""
        return self.extent or tuple((0, n) for n in self.image.shape[1:])


def finish(boxes: Sequence[Box], size: Sequence[int], regions: int = 1) -> dict[str, Tensor]:
    """A batch as `Method.prepare` wants it, of the boxes of all its regions, on their device; nothing waits for the device.

    image: float32 [B, C, *size], excluded: bool [B, 1, *size]; with several regions per sample [B, R, ...].
    """
    first = boxes[0].image
    image = first.new_empty((len(boxes), first.shape[0], *size), dtype=torch.float32)
    excluded = torch.zeros(len(boxes), 1, *size, dtype=torch.bool, device=first.device)
    for row, box in enumerate(boxes):
        finished, hidden = finish_box(box, size)
        image[row].copy_(finished)
        if hidden is not None:
            excluded[row].copy_(hidden)
    batch = {"image": image, "excluded": excluded}
    return batch if regions == 1 else {k: v.unflatten(0, (-1, regions)) for k, v in batch.items()}


def finish_box(box: Box, size: Sequence[int], by_products: bool = False) -> tuple[Tensor, Tensor | None]:
    """Image [C, *size] and excluded [1, *size] of a region; the image is float32 if it was turned or scaled.

    What lies outside of the image, or too far out to have been read, is 0 and excluded: it is no anatomy.

    by_products: scale images, where they are not rotated, by products of matrices: axis by axis, much faster than looking up
    every voxel on a CPU, but in another order of rounding.
    """
    affine, excluded, leaves = box.affine, box.excluded, leaves_image(box, size)
    if affine is None:
        if leaves:
            outside = beyond(box.covered, size, box.image.device)
            excluded = outside if excluded is None else excluded | outside
        return _mirror(box.image, box.mirrored), None if excluded is None else _mirror(excluded, box.mirrored)
    image, still = box.image.float(), len(size) - len(affine.angles)  # so many axes in front are not turned
    products = by_products and not any(affine.angles)
    if products:
        image = _mirror(_scale(image, size[still:], affine.scale), box.mirrored)
    if not products or leaves or excluded is not None:
        # Looking at the places in the opposite order mirrors the turned axes for nothing.
        read = box.image.shape[1:]
        grid = places(affine, size[still:], read[still:], [a - still for a in box.mirrored], image.device)
        rest = [a for a in box.mirrored if a < still]
        image = image if products else _mirror(_look_up(image, grid), rest)
        excluded = None if excluded is None else _look_up_mask(excluded, grid)
        if leaves:
            outside = _look_beyond(box.covered, read, grid)
            excluded = outside if excluded is None else excluded | outside
        excluded = None if excluded is None else _mirror(excluded, rest)
    return image, excluded


def leaves_image(box: Box, size: Sequence[int]) -> bool:
    """Whether any voxel of the region of `size` may lie outside of the image, or of what was read of it."""
    if box.affine is None:
        return box.extent is not None
    read, extent = box.image.shape[1:], box.covered
    still = len(read) - len(box.affine.angles)
    if any(e != (0, n) for e, n in zip(extent[:still], read[:still], strict=True)):
        return True
    reach = np.abs(matrix(box.affine)) @ (np.array(size[still:]) - 1) / 2  # of the outermost voxels, from the centre
    first, last = np.array(extent[still:]).T
    centre = (np.array(read[still:]) - 1) / 2
    return bool((centre - reach < first - 0.5).any() or (centre + reach > last - 0.5).any())


def places(
    affine: AffineParams, size: Sequence[int], read: Sequence[int], mirrored: Sequence[int], device: torch.device
) -> Tensor:
    """Where to look, [*size, D], on `grid_sample`'s axes: x, y and z from -1 to 1 between the outer borders of what was read.

    The host sends one vector per axis and coordinate; what differs from voxel to voxel is added up on the device.
    """
    # Coordinates come in the opposite order of axes.
    directions, half = matrix(affine)[::-1].astype(np.float32), np.array(read[::-1], np.float32)[:, None] / 2
    along = []
    for axis, n in enumerate(size):
        voxels = np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2)  # counted from the centre
        along.append(directions[:, axis : axis + 1] * (-voxels if axis in mirrored else voxels) / half)
    sent = to_device(np.concatenate(along, axis=1), device).split(tuple(size), dim=1)
    parts = [part.view(-1, *(n if a == axis else 1 for a, n in enumerate(size))) for axis, part in enumerate(sent)]
    return reduce(torch.add, parts).movedim(0, -1)


def _look_up(x: Tensor, grid: Tensor, mode: str = "bilinear") -> Tensor:
    """Values [C, *size] of x [C, *read] (float32) at the places of the grid, 0 outside; axes in front are like channels."""
    axes = grid.shape[-1]
    planes = x.reshape(1, -1, *x.shape[-axes:])
    return grid_sample(planes, grid[None], mode, "zeros", align_corners=False).view(*x.shape[:-axes], *grid.shape[:-1])


def _look_up_mask(mask: Tensor, grid: Tensor) -> Tensor:
    """Where most of what a voxel interpolates is True; the nearest voxel decides where it is half, to half precision.

    So does nnU-Net's transform with label maps.
    """
    weight = _look_up(mask * 1000.0, grid).half()
    return (weight > 500) | ((weight == 500) & (_look_up(mask.float(), grid, "nearest") > 0))


def _look_beyond(extent: Sequence[tuple[int, int]], read: Sequence[int], grid: Tensor) -> Tensor:
    """Bool mask [1, *size], True where the grid looks at no voxel of the image; read: all voxels per axis of the box."""
    still = len(read) - grid.shape[-1]
    outside = beyond(extent[:still], read[:still], grid.device).view(1, *read[:still], *[1] * grid.shape[-1])
    for place, (first, last), n in zip(reversed(grid.unbind(-1)), extent[still:], read[still:], strict=True):
        outside = outside | (place < 2 * first / n - 1) | (place > 2 * last / n - 1)
    return outside


def _scale(image: Tensor, size: Sequence[int], scale: float) -> Tensor:
    """The last axes of an image scaled to `size` voxels around the centre, as `_look_up` would."""
    for axis, n in zip(range(-len(size), 0), size, strict=True):
        weights = torch.from_numpy(_interpolation(image.shape[axis], n, scale))
        image = (image.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return image.contiguous()


def _interpolation(read: int, size: int, scale: float) -> np.ndarray:
    """Linear interpolation of an axis of `read` voxels at `size` places around its centre: float32 [size, read]."""
    place = (np.arange(size) - (size - 1) / 2) * scale + (read - 1) / 2
    return (1 - abs(place[:, None] - np.arange(read))).clip(min=0).astype(np.float32)


def _mirror(x: Tensor, axes: Sequence[int]) -> Tensor:
    """x [C, *size] mirrored along axes of the region."""
    return x.flip([a + 1 for a in axes]) if axes else x
