"""How far two surfaces are apart: normalised surface distance (NSD) and Hausdorff distance.

The surface of a mask are its voxels with a face at its outside, the image's border included; each counts once. Distances are
scipy's exact Euclidean distance transform, in mm. NSD: share of both surfaces' voxels that lie within the tolerance of the other
surface (Nikolov et al., https://arxiv.org/abs/1809.04430, with voxels in place of triangles). HD95: the larger of the two
directions' 95th percentiles (Metrics Reloaded, https://arxiv.org/abs/2206.01653).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask with a face at its outside."""
    return mask & ~ndimage.binary_erosion(mask)


def surface_distances(truth: np.ndarray, found: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distances [mm] from every surface voxel of `truth` to the surface of `found`, and the other way round.

    Boolean masks of one shape, with something in each; spacing [mm per axis].
    """
    (box,) = ndimage.find_objects((truth | found).astype(np.uint8))  # beyond it there is no surface
    edges = [surface(mask[box]) for mask in (truth, found)]
    maps = [ndimage.distance_transform_edt(~edge, sampling=list(spacing)) for edge in edges]
    return maps[1][edges[0]], maps[0][edges[1]]


def surface_scores(
    truth: np.ndarray, found: np.ndarray, spacing: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    """NSD, and HD95 [mm], of two boolean masks.

    NaN where both are empty, as nnU-Net's Dice. Where one of them is: NSD 0, and for HD95 the diagonal of the image, beyond which
    no distance lies: leaving such cases out would reward who finds nothing.
    """
    if not truth.any() and not found.any():
        return {"NSD": math.nan, "HD95": math.nan}
    if not truth.any() or not found.any():
        size = [n * s for n, s in zip(truth.shape, spacing, strict=True)]
        return {"NSD": 0.0, "HD95": math.hypot(*size)}
    there, back = surface_distances(truth, found, spacing)
    within = np.count_nonzero(there <= tolerance_mm) + np.count_nonzero(back <= tolerance_mm)
    far = max(np.percentile(there, 95), np.percentile(back, 95))
    return {"NSD": within / (len(there) + len(back)), "HD95": float(far)}
