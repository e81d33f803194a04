"""The labelled images of a probe: which, how they are shown to the network, and which places of them are fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from os.path import isfile, join
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.corpus.folders import find_raw_dataset
from nnunet_ssl.errors import CorpusError, SettingsError
from nnunet_ssl.features.preparation import Preparation
from nnunet_ssl.features.scans import Scan, scans_of_dataset
from nnunet_ssl.targets.table import FILE, Target, read_targets
from nnunet_ssl.trainers.context import RunContext

MOST_IMAGES = 200
PLACES = 200  # per image, to fit the segmentation's model on; half of them foreground where there is so much


@dataclass(frozen=True)
class Shown:
    """The centre of an image [C, *patch], as the network is shown it, where of it there is an image, and its labels."""

    scan: Scan
    image: Tensor
    inside: np.ndarray
    labels: np.ndarray | None

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return self.image.nbytes + self.inside.nbytes + (0 if self.labels is None else self.labels.nbytes)


def chosen_scans(name: Any) -> list[Scan]:
    """The images of a data set that are looked at; raises CorpusError where there is none of that name."""
    scans = sorted(scans_of_dataset(str(name)), key=lambda scan: scan.case)
    return scans[:: max(1, math.ceil(len(scans) / MOST_IMAGES))]


def targets_of(name: str, scans: list[Scan]) -> list[Target]:
    """Those of targets.csv in a data set's folder; none where there is no such file and images have labels.

    Raises CorpusError for a table with mistakes, and for a data set with neither.
    """
    folder = find_raw_dataset(name)
    assert folder is not None
    table = join(folder, FILE)
    if isfile(table):
        everybody = {scan.case: scan.subject for scan in scans_of_dataset(name)}
        return read_targets(table, everybody)
    if not any(scan.label for scan in scans):
        raise CorpusError(f"A probe needs a table {table}, or labels in labelsTr, and {name} has neither.")
    return []


def require_probe(name: str | None, shard: bool) -> None:
    """Raise what a run would raise after hours of preprocessing."""
    if name is None:
        return
    if shard:
        raise SettingsError(
            "--probe needs the whole network in one process, and --shard spreads it. Leave out one of the two."
        )
    targets_of(name, chosen_scans(name))


def preparation_of(trainer: RunContext) -> Preparation:
    """As the corpus was prepared."""
    plans, configuration = trainer.plans_manager, trainer.configuration_manager
    kept = configuration.configuration["resampling_fn_data"] == "no_resampling_hack"
    axes = len(configuration.patch_size)
    spacing = [*plans.original_median_spacing_after_transp[: 3 - axes], *configuration.spacing]
    return Preparation(
        spacing=None if kept else tuple(map(float, spacing)),
        normalization=tuple(configuration.normalization_schemes),
        use_mask=tuple(map(bool, configuration.use_mask_for_norm)),
        intensities=plans.foreground_intensity_properties_per_channel,
        transpose=tuple(plans.transpose_forward),
        axes=axes,
    )


def centre(scan: Scan, image: np.ndarray, labels: np.ndarray | None, size: tuple[int, ...]) -> Shown:
    """The middle of an image [C, *spatial], of `size` voxels, padded with 0; of slices the middle one."""
    if len(size) == 2:
        middle = image.shape[1] // 2
        image, labels = image[:, middle], None if labels is None else labels[middle]
    inside = np.ones(image.shape[1:], bool)
    parts = [image.astype(np.float32), inside[None], *([labels[None]] if labels is not None else [])]
    cut = []
    for part in parts:
        target: np.ndarray = np.zeros((len(part), *size), part.dtype)
        first = [(n - s) // 2 for n, s in zip(part.shape[1:], size, strict=True)]
        lengths = [min(n, s) for n, s in zip(part.shape[1:], size, strict=True)]
        source, place = (
            [slice(max(f * sign, 0), max(f * sign, 0) + n) for f, n in zip(first, lengths, strict=True)]
            for sign in (1, -1)
        )
        to: tuple[slice, ...] = (slice(None), *place)
        of: tuple[slice, ...] = (slice(None), *source)
        target[to] = part[of]
        cut.append(target)
    return Shown(scan, torch.from_numpy(cut[0]), cut[1][0], cut[2][0] if labels is not None else None)


def block_means(values: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Means [C, *grid] over the blocks of [C, *spatial] that belong to the places of a grid."""
    parts = [n for size, places in zip(values.shape[1:], grid, strict=True) for n in (places, size // places)]
    return values.reshape(len(values), *parts).mean(axis=tuple(range(2, len(parts) + 2, 2)))


def chosen_places(shares: np.ndarray) -> np.ndarray:
    """At most PLACES rows of [N, labels], evenly spread, half of them with foreground where there is so much."""
    foreground = np.flatnonzero(shares[:, 1:].sum(axis=1) > 0)
    background = np.flatnonzero(shares[:, 1:].sum(axis=1) == 0)
    chosen = []
    for some in (foreground, background):
        number = min(len(some), PLACES // 2)
        chosen.append(some[np.linspace(0, len(some) - 1, number).round().astype(int)] if number else some)
    return np.concatenate(chosen)
