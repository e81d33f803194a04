"""Where in an image a patch is taken: around the anatomy where a mask shows it, never mostly in the air, otherwise anywhere."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from nnunet_ssl.planners.preprocessing.foreground import LOCATIONS, SHARE
from nnunet_ssl.trainers.data.corpus import Corpus, CorpusDataset

AROUND_ANATOMY = 0.33  # share of the patches of images with a mask of the anatomy; nnU-Net's oversampling of foreground
TRIES = 10  # random places before one is taken around a voxel that is no air


class PatchSampler:
    """Draws first voxels of patches, from numpy's global generator.

    min_foreground: share of a patch's voxels that must not be air. It is judged by the places of foreground voxels that
    preprocessing noted, so that nothing is read for a patch that is not taken. Data sets without such notes are not judged,
    nor are those with masks of the anatomy, which steer in their own way.
    """

    def __init__(self, corpus: Corpus, min_foreground: float = 0.0) -> None:
        self.min_foreground = min_foreground
        # Whether there are notes is asked once: a stock preprocessed case has a large file of properties without them.
        self.judged = {
            name
            for name, first in (_first_cases(corpus).items() if min_foreground else ())
            if corpus.datasets[name].anatomy_label is None and SHARE in corpus.properties(first)
        }

    def draw(
        self,
        dataset: CorpusDataset,
        shape: Sequence[int],
        size: Sequence[int],
        properties: Callable[[], Mapping[str, Any]],
    ) -> list[int]:
        """First voxel of a patch of `size` in an image of `shape` voxels; negative where the image is smaller, and centred.

        `properties` is called only where it is needed. Unlike nnU-Net's, a patch around a voxel does not leave the image.
        """
        if all(full <= s for full, s in zip(shape, size, strict=True)):
            return [(full - s) // 2 for full, s in zip(shape, size, strict=True)]
        if dataset.anatomy_label is not None and np.random.uniform() < AROUND_ANATOMY:
            return around(anatomy(properties(), dataset.anatomy_label), shape, size)
        start = around(None, shape, size)
        if dataset.name not in self.judged:
            return start
        noted = properties()
        if SHARE not in noted:
            return start
        locations, share = noted[LOCATIONS][:, 1:], float(noted[SHARE])
        for _ in range(TRIES - 1):
            if foreground_share(locations, share, shape, start, size) >= self.min_foreground:
                return start
            start = around(None, shape, size)
        if foreground_share(locations, share, shape, start, size) >= self.min_foreground:
            return start
        return around(locations, shape, size)


def around(locations: np.ndarray | None, shape: Sequence[int], size: Sequence[int]) -> list[int]:
    """First voxel of a patch with one of `locations` [N, 3] in its middle, or anywhere in the image when there is none."""
    voxel = locations[np.random.randint(len(locations))] if locations is not None and len(locations) else None
    start = []
    for axis, (full, s) in enumerate(zip(shape, size, strict=True)):
        room = full - s
        if room <= 0:
            start.append(room // 2)
        elif voxel is None:
            start.append(int(np.random.randint(room + 1)))
        else:
            start.append(min(max(int(voxel[axis]) - s // 2, 0), room))
    return start


def anatomy(properties: Mapping[str, Any], label: int) -> np.ndarray | None:
    """Voxels [N, 3] of the anatomy that preprocessing noted; None where there is no anatomy."""
    noted = properties.get(LOCATIONS, properties.get("class_locations", {}).get(label))
    return None if noted is None or not len(noted) else np.asarray(noted)[:, -3:]


def foreground_share(
    locations: np.ndarray, share: float, shape: Sequence[int], start: Sequence[int], size: Sequence[int]
) -> float:
    """Estimated share of a patch's voxels that are foreground.

    locations [N, 3]: foreground voxels drawn with equal probability; share: of the image's voxels that are foreground.
    """
    if not len(locations):
        return 0.0
    first = np.asarray(start)
    inside = ((locations >= first) & (locations < first + np.asarray(size))).all(axis=1).mean()
    return float(inside) * share * prod(shape) / prod(size)


def _first_cases(corpus: Corpus) -> dict[str, str]:
    """A case of every data set that has one."""
    found = {}
    for name in corpus.datasets:
        row = bisect_left(corpus.identifiers, f"{name}/")
        if row < len(corpus.identifiers) and corpus.identifiers[row].startswith(f"{name}/"):
            found[name] = corpus.identifiers[row]
    return found
