"""Spacing, order of axes and patch size of a fine-tuning, between what the pre-training had and what the data want."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunet_ssl.corpus.check import shape_text
from nnunet_ssl.errors import CorpusError

ADAPT = ("like_pretrained", "like_dataset", "fixed", "no_resample")
DEFAULT_EDGE = 160  # voxels; the OpenMind benchmark's patch (arXiv:2412.17041), where a checkpoint names none


def patch_within_budget(
    spacing: Sequence[float], median_shape: Sequence[float], stride: Sequence[int], budget: float
) -> list[int]:
    """nnU-Net's way to a patch for a network that is given: the images' aspect ratio, at most `budget` voxels.

    Starts from a patch that is cubic in mm and far too large, cut to the median image [voxels], and shortens the axis
    that covers most of the image until the patch fits. Every axis is a multiple of `stride`. `spacing` in mm; all axes
    transposed.
    """
    inverse = [1 / s for s in spacing]
    scale = (8 * budget / math.prod(inverse)) ** (1 / len(spacing))
    wanted = [min(i * scale, float(n)) for i, n in zip(inverse, median_shape, strict=True)]
    size = [max(1, math.ceil(w / t - 1e-6)) * t for w, t in zip(wanted, stride, strict=True)]
    while math.prod(size) > budget:
        longer = [axis for axis in range(len(size)) if size[axis] > stride[axis]]
        if not longer:
            break
        axis = max(longer, key=lambda a: size[a] / max(1.0, median_shape[a]))
        size[axis] -= stride[axis]
    return two_positions(size, median_shape, stride)


def patch_like(wanted: Sequence[int], median_shape: Sequence[float], stride: Sequence[int]) -> list[int]:
    """`wanted` voxels, less along axes where the median image is smaller: its size up to the next multiple of `stride`."""
    size = [
        min(math.ceil(w / t), max(1, math.ceil(n / t))) * t
        for w, n, t in zip(wanted, median_shape, stride, strict=True)
    ]
    return two_positions(size, median_shape, stride)


def two_positions(size: list[int], median_shape: Sequence[float], stride: Sequence[int]) -> list[int]:
    """`size` with at least two positions in the coarsest feature map, because a single one cannot be normalised."""
    if all(s == t for s, t in zip(size, stride, strict=True)):
        longest = max(range(len(size)), key=lambda axis: median_shape[axis] / stride[axis])
        size[longest] = 2 * stride[longest]
    return size


def require_fitting_patch(size: Sequence[int], stride: Sequence[int]) -> list[int]:
    """A patch size the user gave, as a list; raises CorpusError naming the next valid ones when the network cannot take it."""
    if len(size) == 1:
        size = list(size) * len(stride)
    if len(size) != len(stride) or any(s < 1 for s in size):
        raise CorpusError(
            f"--patch-size wants 1 or {len(stride)} numbers above 0 for this network, found {' '.join(map(str, size))}."
        )
    if any(s % t for s, t in zip(size, stride, strict=True)):
        larger = [-(-s // t) * t for s, t in zip(size, stride, strict=True)]
        smaller = [max(t, s // t * t) for s, t in zip(size, stride, strict=True)]
        raise CorpusError(
            f"A patch of {shape_text(size)} voxels does not fit this network: its axes must be multiples of "
            f"{shape_text(stride)}. The next valid sizes are {shape_text(smaller)} and {shape_text(larger)}."
        )
    if list(size) == list(stride):
        raise CorpusError(
            f"A patch of {shape_text(size)} voxels leaves one position in the network's coarsest feature map, too few. "
            f"Use at least {2 * stride[-1]} along one axis."
        )
    return [int(s) for s in size]


def require_spacing(spacing: Sequence[float], axes: int) -> list[float]:
    """A spacing [mm] the user gave, as floats; raises CorpusError."""
    if len(spacing) != axes or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise CorpusError(
            f"--spacing wants {axes} numbers above 0 in mm for this network, in the images' own order of axes as nnU-Net "
            f"reads them (slices first), e.g. {' '.join(['1'] * axes)}. Found {' '.join(f'{s:g}' for s in spacing)}."
        )
    return [float(s) for s in spacing]
