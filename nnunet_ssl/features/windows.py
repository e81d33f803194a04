"""Feature maps of images larger than a patch: windows that overlap, blended as nnU-Net blends its predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import Tensor
from torch.nn import functional

OVERLAP = 0.5  # nnU-Net's share of a patch between neighbours
Size = tuple[int, ...]


def padded_size(size: Sequence[int], patch: Sequence[int], stride: Sequence[int]) -> Size:
    """The least size [voxels] that holds an image, at least a patch, and a multiple of the stride along every axis."""
    return tuple(max(p, math.ceil(n / s) * s) for n, p, s in zip(size, patch, stride, strict=True))


def starts(size: int, patch: int, stride: int, overlap: float = OVERLAP) -> list[int]:
    """First voxels of the windows along an axis: evenly spread, on the grid of the feature map, the last at the end."""
    number = math.ceil((size - patch) / (patch * (1 - overlap))) + 1 if size > patch else 1
    step = (size - patch) / max(number - 1, 1)
    return list(dict.fromkeys(round(n * step / stride) * stride for n in range(number)))


def windows(
    size: Sequence[int], patch: Sequence[int], stride: Sequence[int], overlap: float = OVERLAP
) -> Iterator[tuple[int, ...]]:
    """The first voxels of all windows of an image that is padded already."""
    axes = [starts(n, p, s, overlap) for n, p, s in zip(size, patch, stride, strict=True)]
    return product(*axes)


def blended_map(
    encode: Callable[[Tensor], list[Tensor]],
    image: Tensor,
    patch: Sequence[int],
    stride: Sequence[int],
    layers: Sequence[int],
    strides: Sequence[Sequence[int]],
    *,
    overlap: float = OVERLAP,
    batch_size: int = 1,
) -> tuple[list[Tensor], Size]:
    """Feature maps of a whole image [C, *spatial]: those of `layers`, [C_i, *grid_i] each, and the voxels padded before it.

    encode: windows [B, C, *patch] to the feature maps of all layers. stride: of the coarsest map; strides: of each of the wanted
    ones [voxels per position]. The image is padded with 0, centred, where it does not fill a patch or a stride.
    """
    size = padded_size(image.shape[1:], patch, stride)
    before = tuple((n - m) // 2 for n, m in zip(size, image.shape[1:], strict=True))
    # Whole positions before the image would be wasted; within the first one it is centred as nnU-Net's predictor does.
    after = tuple(n - m - b for n, m, b in zip(size, image.shape[1:], before, strict=True))
    pads = [n for pair in zip(before[::-1], after[::-1], strict=True) for n in pair]
    padded = functional.pad(image, pads)
    places = list(windows(size, patch, stride, overlap))
    sums: list[Tensor] = []
    weights: list[Tensor] = []
    for first in range(0, len(places), batch_size):
        some = places[first : first + batch_size]
        crops = torch.stack([padded[_box(place, patch)] for place in some])
        maps = encode(crops)
        maps = [maps[layer].float() for layer in layers]
        if not sums:
            grids = [tuple(n // s for n, s in zip(size, by, strict=True)) for by in strides]
            sums = [torch.zeros((m.shape[1], *grid), device=m.device) for m, grid in zip(maps, grids, strict=True)]
            weights = [torch.zeros((1, *grid), device=m.device) for m, grid in zip(maps, grids, strict=True)]
        for number, (found, by) in enumerate(zip(maps, strides, strict=True)):
            importance = _importance(tuple(found.shape[2:])).to(found.device)
            for sample, place in zip(found, some, strict=True):
                box = _box([p // s for p, s in zip(place, by, strict=True)], found.shape[2:])
                sums[number][box] += sample * importance
                weights[number][box] += importance
    return [total / weight for total, weight in zip(sums, weights, strict=True)], before


def _box(first: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """Where in [C, *spatial]."""
    return (slice(None), *(slice(f, f + n) for f, n in zip(first, size, strict=True)))


def _importance(size: tuple[int, ...]) -> Tensor:
    """nnU-Net's weights, larger in the middle of a window, for the positions of its feature map."""
    if all(n == 1 for n in size):
        return torch.ones(size)
    return compute_gaussian(size, dtype=torch.float32, device=torch.device("cpu"))
