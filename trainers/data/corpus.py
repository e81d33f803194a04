"""A corpus: the cases of one or several preprocessed data sets, read box by box."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import join
from typing import Any

import blosc2
import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, crop_and_pad_nd
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.training.dataloading.nnunet_dataset import file_ending_dataset_mapping, nnUNetDatasetBlosc2
from torch import Tensor

from nnunet_ssl.errors import CorpusError
from nnunet_ssl.planners.preprocessing.foreground import LOCATIONS
from nnunet_ssl.trainers.data.sampling_locations import SamplingLocations

TRAINING, VALIDATION = 0, 1  # streams of random numbers
# mmap reads only the pages of the blocks that are asked for; nnU-Net leaves it out on Windows, where it does not work.
READ = {"mode": "r", "dparams": {"nthreads": 1}, **({} if os.name == "nt" else {"mmap_mode": "r"})}


def derive_seed(*position: int) -> int:
    """A seed for the place `position`, statistically independent of all others."""
    return int(np.random.SeedSequence(position).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, which nnU-Net's transforms draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class CorpusDataset:
    """One preprocessed data set of a corpus.

    Labels are those of its masks: `anonymised_label` of voxels no loss may ask for, `anatomy_label` of what patches are to
    show. channels: their names. table_folder: where its corpus.parquet lies, None where there is none.
    """

    name: str
    folder: str
    anonymised_label: int | None = None
    anatomy_label: int | None = None
    channels: tuple[str, ...] = ()
    table_folder: str | None = None


def storage_and_cases(folder: str) -> tuple[str | None, list[str]]:
    """How nnU-Net stored a preprocessed folder ("b2nd" or "npz", None when it is empty), and its cases, sorted.

    From one listing of the names: nnU-Net's own functions ask the file system about every file, one after the other.
    Raises CorpusError when there are both kinds, as nnU-Net does.
    """
    names = os.listdir(folder)
    compressed = [n[: -len(".b2nd")] for n in names if n.endswith(".b2nd") and not n.endswith("_seg.b2nd")]
    numpy = [n[: -len(".npz")] for n in names if n.endswith(".npz")]
    if compressed and numpy:
        raise CorpusError(
            f"{folder} holds .b2nd and .npz files. Remove those of the older preprocessing, or the folder, and preprocess again."
        )
    return "b2nd" if compressed else "npz" if numpy else None, sorted(compressed or numpy)


class Corpus:
    """Cases of one or several preprocessed nnU-Net data sets, named `<data set>/<case>`."""

    def __init__(self, datasets: Sequence[CorpusDataset], identifiers: Sequence[str]) -> None:
        self.datasets = {s.name: s for s in datasets}
        self.identifiers = sorted(identifiers)
        self._stored: dict[str, Any] = {}
        self._sampling = {s.name: SamplingLocations(s.folder) for s in datasets}
        for dataset in datasets:
            storage, _ = storage_and_cases(dataset.folder)
            if storage is not None:
                self._stored[dataset.name] = file_ending_dataset_mapping[storage](dataset.folder, [])

    @staticmethod
    def all_identifiers(datasets: Sequence[CorpusDataset]) -> list[str]:
        """`<data set>/<case>` of every preprocessed case."""
        return sorted(f"{s.name}/{case}" for s in datasets for case in storage_and_cases(s.folder)[1])

    def split(self, identifier: str) -> tuple[CorpusDataset, str]:
        """Data set and case of an identifier."""
        name, case = identifier.split("/", 1)
        return self.datasets[name], case

    def image(self, identifier: str) -> Any:
        """The image [C, D, H, W] of a case, readable box by box: nothing is read yet."""
        return self._array(identifier, seg=False)

    def labels(self, identifier: str) -> Any:
        """The label map [1, D, H, W] of a case, likewise."""
        return self._array(identifier, seg=True)

    def properties(self, identifier: str) -> dict[str, Any]:
        """What preprocessing noted about a case, with the places of the anatomy wherever they are noted."""
        dataset, case = self.split(identifier)
        noted, label, places = load_pickle(join(dataset.folder, f"{case}.pkl")), dataset.anatomy_label, None
        if label is not None and LOCATIONS not in noted and self._sampling[dataset.name].is_there:
            places = self._sampling[dataset.name].of(case, label)
        return noted if places is None else {**noted, LOCATIONS: places}

    def _array(self, identifier: str, seg: bool) -> Any:
        dataset, case = self.split(identifier)
        stored = self._stored[dataset.name]
        if isinstance(stored, nnUNetDatasetBlosc2):
            return blosc2.open(urlpath=join(dataset.folder, f"{case}{'_seg' * seg}.b2nd"), **READ)
        return stored.load_case(case)[int(seg)]

    def centre_crop(self, identifier: str, size: Sequence[int]) -> dict[str, Tensor]:
        """The centre of a case: "image" [C, *size] and "excluded" [1, *size]; what lies beyond a smaller case is excluded."""
        dataset, _ = self.split(identifier)
        data, flat = self.image(identifier), len(size) == 2
        wanted = (1, *size) if flat else tuple(size)
        start = [(s - w) // 2 for s, w in zip(data.shape[1:], wanted, strict=True)]
        image = read_box(data, start, wanted).float()
        excluded = beyond(image_extent(data.shape[1:], start, wanted), wanted)
        if dataset.anonymised_label is not None:
            excluded |= read_box(self.labels(identifier), start, wanted, dtype=np.int16) == dataset.anonymised_label
        return {"image": image[:, 0] if flat else image, "excluded": excluded[:, 0] if flat else excluded}


def image_extent(shape: Sequence[int], start: Sequence[int], size: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
    """Which voxels of a box of `size` from `start` on lie in an image of `shape` voxels, (first, behind the last) per axis.

    None for all of them.
    """
    extent = tuple(
        (min(max(-s, 0), n), max(min(full - s, n), 0)) for full, s, n in zip(shape, start, size, strict=True)
    )
    return None if extent == tuple((0, n) for n in size) else extent


def beyond(extent: Sequence[tuple[int, int]] | None, size: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Bool mask [1, *size], True outside of the image; extent as `image_extent` gives it."""
    if extent is None:
        return torch.zeros(1, *size, dtype=torch.bool, device=device)
    mask = torch.ones(1, *size, dtype=torch.bool, device=device)
    inside = (slice(None), *bounding_box_to_slice(extent))  # slices: a GPU is not waited for
    mask[inside] = False
    return mask


def read_box(
    array: Any, start: Sequence[int], size: Sequence[int], channel: int | None = None, dtype: Any = None
) -> Tensor:
    """The voxels [C, *size] from `start` on, 0 outside the image; with `channel`, [1, *size] of this one.

    dtype: numpy's, of the result; by default half precision stays half, and everything else becomes float32.
    """
    box = [[int(s), int(s + n)] for s, n in zip(start, size, strict=True)]
    if channel is not None:
        box = [[channel, channel + 1], *box]
    if dtype is None:
        dtype = np.float16 if array.dtype == np.float16 else np.float32
    # One slicing of the array: one pass over the compressed blocks that the box touches.
    read = crop_and_pad_nd(array, box, cast_cropped_to=dtype)
    return torch.from_numpy(np.ascontiguousarray(read, dtype=dtype))
