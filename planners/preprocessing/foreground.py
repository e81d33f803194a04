"""Where in an image the body is: from a mask of the anatomy, otherwise by a threshold between air and tissue.

Training takes patches around `foreground_locations`, and may reject those that are mostly darker than `air_threshold`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from skimage.filters import threshold_li

from nnunet_ssl.corpus.reader import LABELS

LOCATIONS = "foreground_locations"  # in a case's properties: int32 [N, 4] of (0, z, y, x), as nnU-Net's class_locations
SHARE = "foreground_share"  # in a case's properties: of all voxels of the image, where LOCATIONS are drawn from
AIR = "air_threshold"  # in a case's properties: per channel, in the image's stored values; None where there is no air

MAX_LOCATIONS = 1000  # nnU-Net's 10,000 and more would be read with every patch
MAX_LOOKED_AT = 200_000  # voxels for a threshold
AIR_OF_CT = -900.0  # Hounsfield units; air is at -1000, lungs are above -900
AIR_OF_TISSUE = 0.2  # air is on average this much darker than tissue, or it is none: cropped images have none


def mask_labels(labels: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The labels (anatomy, anonymised) in dataset.json's `labels`, None for those that are not there.

    "anatomy" counts in the labels of an imported corpus only: among labels that someone drew it may be any part of it.
    """
    found = (labels.get(name) for name in ("anatomy", "anonymised"))
    anatomy, anonymised = (value if isinstance(value, int) else None for value in found)
    return (anatomy if only_masks(labels) else None), anonymised


def only_masks(labels: Mapping[str, Any]) -> bool:
    """Whether dataset.json's `labels` are a corpus' masks and nothing that someone could learn to segment."""
    return set(labels) - {"background"} <= set(LABELS)


def air_threshold(image: np.ndarray, inside: np.ndarray, kind: str) -> float | None:
    """The value up to which a voxel of an image [D, H, W] is air, None when there is no air in it.

    `inside` (of the same shape) says which voxels are looked at. Hounsfield units have a fixed threshold; elsewhere it is
    the minimum cross entropy (Li and Lee, Pattern Recognition 1993), if what is below it is dark enough.
    """
    step = max(1, round((image.size / MAX_LOOKED_AT) ** (1 / 3)))
    values = image[::step, ::step, ::step][inside[::step, ::step, ::step]]
    if values.size == 0:
        return None
    if kind == "CT":
        return AIR_OF_CT if values.min() <= AIR_OF_CT else None
    lowest, highest = np.percentile(values, (0.1, 99.5))  # one bright spot must not make all else look dark
    if not highest > lowest:
        return None
    values = np.clip(values, lowest, highest)
    threshold = float(threshold_li(values))
    dark, bright = values[values <= threshold], values[values > threshold]
    if not dark.size or not bright.size or dark.mean() - lowest > AIR_OF_TISSUE * (bright.mean() - lowest):
        return None
    return threshold


def is_foreground(data: np.ndarray, seg: np.ndarray, thresholds: list[float | None]) -> np.ndarray:
    """Voxels [D, H, W] of an image [C, D, H, W] inside the non-zero region that are no air in some channel."""
    inside = seg >= 0
    if any(threshold is None for threshold in thresholds):
        return inside
    bright = [channel > threshold for channel, threshold in zip(data, thresholds, strict=True)]
    return inside & np.logical_or.reduce(bright)


def normalised_threshold(raw: np.ndarray, normalised: np.ndarray, threshold: float | None) -> float | None:
    """What a threshold on a raw channel is after normalisation, which keeps the order of values but may clip them."""
    if threshold is None:
        return None
    below = normalised[raw <= threshold]
    return float(below.max()) if below.size else None


def sample_locations(foreground: np.ndarray, seed: int = 1234) -> np.ndarray:
    """Up to MAX_LOCATIONS places [N, 4] of (0, z, y, x) among the True voxels of [D, H, W], the same ones every time."""
    generator = np.random.default_rng(seed)
    flat = foreground.ravel()
    # Drawing anywhere and keeping what is foreground is faster than listing millions of voxels, unless there are few.
    drawn = np.unique(generator.integers(0, flat.size, 8 * MAX_LOCATIONS))
    chosen = drawn[flat[drawn]]
    if len(chosen) < MAX_LOCATIONS:
        chosen = np.flatnonzero(flat)
    if len(chosen) > MAX_LOCATIONS:
        chosen = np.sort(generator.choice(chosen, MAX_LOCATIONS, replace=False))
    places = np.stack(np.unravel_index(chosen, foreground.shape), axis=1)
    return np.concatenate([np.zeros((len(places), 1)), places], axis=1).astype(np.int32)
