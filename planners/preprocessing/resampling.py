"""nnU-Net's resampling as one matrix product per axis: the same splines, several times faster.

scikit-image's `resize`, which nnU-Net calls, is linear and separable: resampling an axis from n to m voxels multiplies it by
an m x n matrix that depends on n and m alone. The matrices come from scipy's own `zoom` of the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy.ndimage as ndi
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from torch import Tensor

NEGLIGIBLE = 1e-7  # weights of a cubic spline fade by 0.27 per voxel; below single precision they are left away
TIE = 1e-5  # weights this close are the same: rounding has the last word on them, here as there
BLOCK = 64  # output voxels computed together from the input voxels they depend on
TIEBREAKS = ("nearest", "lowest", "highest")


def resample(
    data: np.ndarray,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    is_seg: bool = False,
    order: int = 3,
    order_z: int = 0,
    force_separate_z: bool | None = False,
    separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,
    *,
    seg_tiebreak: str = "nearest",
) -> np.ndarray:
    """An image or labels [C, D, H, W] at `new_shape` voxels, spacings in mm.

    Arguments and result as nnU-Net's `resample_data_or_seg_to_shape`: images to single precision, labels but for ties that
    rounding decides.

    Thick slices (`separate_z`) are resampled one by one and then repeated (order_z 0) or interpolated linearly (1).
    seg_tiebreak: which of the labels that share a voxel evenly gets it: the "nearest" one, or that with the "lowest" or
    "highest" number.
    """
    shape = tuple(int(n) for n in new_shape)
    if data.shape[1:] == shape:
        return data
    separate, axis = determine_do_sep_z_and_axis(
        force_separate_z, current_spacing, new_spacing, separate_z_anisotropy_threshold
    )
    lonely = int(axis) if separate and axis is not None else None
    if is_seg:
        return np.stack([_resample_labels(channel, shape, order, lonely, seg_tiebreak) for channel in data])
    with torch.inference_mode():
        channels = [_resample_image(_tensor(channel), shape, order, order_z, lonely).numpy() for channel in data]
    return np.stack(channels).astype(data.dtype, copy=False)


@lru_cache(maxsize=512)
def interpolation_matrix(old: int, new: int, order: int) -> np.ndarray:
    """The matrix [new, old] that resamples an axis as scikit-image's `resize(mode="edge", anti_aliasing=False)` does."""
    if old == 1:
        return np.ones((new, 1))
    zoomed = ndi.zoom(np.eye(old), (new / old, 1), order=order, mode="nearest", grid_mode=True)
    zoomed[np.abs(zoomed) < NEGLIGIBLE] = 0
    return zoomed


@lru_cache(maxsize=512)
def _blocks(old: int, new: int, order: int) -> list[tuple[slice, slice, Tensor]]:
    """Parts (output voxels, input voxels they depend on, weights) that make up a matrix."""
    matrix = interpolation_matrix(old, new, order)
    parts = []
    for first in range(0, new, BLOCK):
        rows = matrix[first : first + BLOCK]
        used = np.flatnonzero(rows.any(axis=0))
        low, high = int(used[0]), int(used[-1]) + 1
        weights = torch.from_numpy(rows[:, low:high].astype(np.float32))
        parts.append((slice(first, first + len(rows)), slice(low, high), weights))
    return parts


def _tensor(channel: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(channel, dtype=np.float32))


def _apply(volume: Tensor, new: int, axis: int, order: int) -> Tensor:
    """Resample one axis of a contiguous [D, H, W]."""
    old = volume.shape[axis]
    if old == new:
        return volume
    shape = [*volume.shape[:axis], new, *volume.shape[axis + 1 :]]
    result = volume.new_empty(shape)
    flat = volume.reshape(-1, old, int(np.prod(shape[axis + 1 :])))
    target = result.view(-1, new, flat.shape[2])
    for rows, columns, weights in _blocks(old, new, order):
        if axis == volume.ndim - 1:
            target[:, rows, 0] = flat[:, columns, 0] @ weights.T
        else:
            for source, part in zip(flat, target, strict=True):
                torch.mm(weights, source[columns], out=part[rows])
    return result


def _spread(volume: Tensor, shape: Sequence[int], order: int, axes: Sequence[int]) -> Tensor:
    # Axes that shrink come first, so that the others have less to do.
    for axis in sorted(axes, key=lambda a: shape[a] / volume.shape[a]):
        volume = _apply(volume, shape[axis], axis, order)
    return volume


def _resample_image(volume: Tensor, shape: Sequence[int], order: int, order_z: int, lonely: int | None) -> Tensor:
    # Splines overshoot; what nnU-Net calls keeps each image, here each slice, within its own range.
    axes = [axis for axis in range(3) if axis != lonely]
    dims = [0, 1, 2] if lonely is None else axes
    lowest, highest = volume.amin(dims, keepdim=True), volume.amax(dims, keepdim=True)
    result = _spread(volume, shape, order, axes)
    if result is not volume:
        result = torch.clamp(result, lowest, highest)
    return result if lonely is None else _along_lonely(result, shape[lonely], lonely, order_z)


def _along_lonely(volume: Tensor, new: int, axis: int, order_z: int) -> Tensor:
    """Resample the axis across thick slices, `order_z` 0 (repeat the nearest slice) or 1 (linearly)."""
    old = volume.shape[axis]
    if old == new:
        return volume
    if order_z:
        return _apply(volume, new, axis, order_z)
    return volume.index_select(axis, torch.from_numpy(_nearest_slices(old, new)))


def _resample_labels(
    labels: np.ndarray, shape: tuple[int, ...], order: int, lonely: int | None, tiebreak: str
) -> np.ndarray:
    """A voxel gets the label with most weight around it, of labels that share it that of `tiebreak` (batchgenerators' rule)."""
    present = [int(label) for label in np.unique(labels)]
    if len(present) == 1:
        return np.full(shape, present[0], labels.dtype)
    axes = [axis for axis in range(3) if axis != lonely]
    inner = [shape[axis] if axis in axes else labels.shape[axis] for axis in range(3)]
    closest = labels[np.ix_(*(_nearest(old, new) for old, new in zip(labels.shape, inner, strict=True)))]
    with torch.inference_mode():
        if len(present) == 2:  # one has the weight that the other has not
            weight = _spread(_tensor(labels == present[1]), inner, order, axes).numpy()
            shared = {"nearest": closest, "lowest": present[0], "highest": present[1]}[tiebreak]
            result = np.where(np.abs(weight - 0.5) <= TIE / 2, shared, np.where(weight > 0.5, present[1], present[0]))
        elif tiebreak == "nearest":
            result = _heaviest(labels, present, closest, inner, order, axes)
        else:
            result = _first_or_last_heaviest(labels, present, inner, order, axes, last=tiebreak == "highest")
    result = result.astype(labels.dtype, copy=False)
    return result if lonely is None else result.take(_nearest_slices(result.shape[lonely], shape[lonely]), axis=lonely)


def _heaviest(
    labels: np.ndarray,
    present: Sequence[int],
    closest: np.ndarray,
    shape: Sequence[int],
    order: int,
    axes: Sequence[int],
) -> np.ndarray:
    result = np.full(shape, present[0], labels.dtype)
    best, of_closest = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for label in present:
        weight = _spread(_tensor(labels == label), shape, order, axes).numpy()
        np.copyto(of_closest, weight, where=closest == label)
        np.copyto(result, label, where=weight > best)
        np.maximum(best, weight, out=best)
    np.copyto(result, closest, where=of_closest >= best - TIE)
    return result


def _first_or_last_heaviest(
    labels: np.ndarray, present: Sequence[int], shape: Sequence[int], order: int, axes: Sequence[int], last: bool
) -> np.ndarray:
    result, best = np.full(shape, present[0], labels.dtype), np.zeros(shape, np.float32)
    for label in present:
        weight = _spread(_tensor(labels == label), shape, order, axes).numpy()
        np.copyto(result, label, where=weight > (best - TIE if last else best + TIE))
        np.maximum(best, weight, out=best)
    return result


def _nearest(old: int, new: int) -> np.ndarray:
    """For every new voxel the old one that resampling of order 0 takes."""
    position = np.arange(old, dtype=np.float64)
    zoomed = position if old == new else ndi.zoom(position, new / old, order=0, mode="nearest", grid_mode=True)
    return zoomed.astype(np.int64)


def _nearest_slices(old: int, new: int) -> np.ndarray:
    """Nearest neighbours across thick slices, as nnU-Net computes them."""
    position = (np.arange(new) + 0.5) * (float(old) / new) - 0.5
    return ndi.map_coordinates(np.arange(old), position[None], order=0, mode="nearest").astype(np.int64)
