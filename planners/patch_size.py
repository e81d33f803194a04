"""How large a patch fits the images and the network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunet_ssl.corpus.check import shape_text
from nnunet_ssl.errors import CorpusError


def choose_patch_size(edge: int, median_shape: Sequence[float], stride: int) -> list[int]:
    """`edge` voxels along every axis, less where the median image is smaller: its size, up to the next multiple of `stride`.

    The longest axis keeps two positions in the coarsest feature map, because a single one cannot be normalised.
    """
    size = [min(edge, max(1, math.ceil(s / stride)) * stride) for s in median_shape]
    if all(s == stride for s in size):
        longest = max(range(len(size)), key=lambda axis: median_shape[axis])
        size[longest] = 2 * stride
    return size


def require_patch_size(size: Sequence[int], stride: int) -> list[int]:
    """`size` as a list; raises CorpusError naming the next valid sizes when the network cannot take it."""
    if len(size) != 3 or any(s < 1 for s in size):
        raise CorpusError(f"A patch size is three numbers above 0, found {list(size)}. Example: 160 160 160")
    if any(s % stride for s in size):
        larger = [-(-s // stride) * stride for s in size]
        smaller = [max(stride, s // stride * stride) for s in size]
        raise CorpusError(
            f"A patch of {shape_text(size)} voxels does not fit this network: every axis must be a multiple of {stride}. "
            f"The next valid sizes are {shape_text(smaller)} and {shape_text(larger)}."
        )
    if all(s == stride for s in size):
        raise CorpusError(
            f"A patch of {shape_text(size)} voxels leaves one position in the network's coarsest feature map, too few. "
            f"Use at least {2 * stride} along one axis."
        )
    return [int(s) for s in size]


def padding_warning(size: Sequence[int], shapes: Sequence[Sequence[float]], stride: int) -> str | None:
    """What to tell the user when `size` is beyond what the largest of the `shapes` (after resampling) needs."""
    largest = [max(shape[axis] for shape in shapes) for axis in range(len(size))]
    if all(s < n + stride for s, n in zip(size, largest, strict=True)):
        return None
    return (
        f"WARNING: The patch of {shape_text(size)} voxels is larger than every image (at most {shape_text(largest)} voxels "
        "after resampling). The rest is padding, which costs time and teaches nothing."
    )
