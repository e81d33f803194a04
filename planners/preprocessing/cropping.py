"""nnU-Net's crop to the region that is not zero, with its holes found in one pass."""

from __future__ import annotations

import numpy as np
import scipy.ndimage as ndi
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, get_bbox_from_mask

OUTSIDE = -1  # nnU-Net's label of the voxels outside that region

Box = list[list[int]]


def crop_to_nonzero(data: np.ndarray, seg: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, Box]:
    """(image, labels, box) cropped, [C, D, H, W], [1, D, H, W] and [[first, last + 1], ...]; equal to nnU-Net's function.

    A `seg` is changed in place. Filling holes never makes the region's box larger, so they are only looked for inside
    of it, and only where there are zeros.
    """
    nonzero = (data != 0).any(axis=0) if len(data) > 1 else data[0] != 0
    box: Box = get_bbox_from_mask(nonzero)
    window = bounding_box_to_slice(box)
    all_channels = (slice(None), *window)
    data, nonzero = data[all_channels], nonzero[window]
    inside = nonzero if nonzero.all() else fill_holes(nonzero)
    if seg is None:
        return data, np.where(inside, np.int8(0), np.int8(OUTSIDE))[None], box
    seg = seg[all_channels]
    seg[(seg == 0) & ~inside[None]] = OUTSIDE
    return data, seg, box


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """scipy's binary_fill_holes, by components: a hole is a part of the outside that reaches no face."""
    parts, number = ndi.label(~mask)
    reached = np.zeros(number + 1, dtype=bool)
    for axis in range(mask.ndim):
        for end in (0, -1):
            reached[np.unique(parts.take(end, axis=axis))] = True
    reached[0] = False  # the mask itself
    return ~reached[parts]
