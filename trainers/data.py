"""Patches of a corpus whose content depends on nothing but (seed, stream, position)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nnunet_ssl.views.spec import Views

TRAINING, VALIDATION = 0, 1  # streams of random numbers


def derive_seed(*position: int) -> int:
    """A seed for the place `position`, statistically independent of all others."""
    return int(np.random.SeedSequence(position).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, which nnU-Net's transforms draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class Source:
    """One preprocessed data set of a corpus."""

    name: str
    folder: str
    anonymised_label: int | None  # label of the voxels no loss may ask for


class Corpus:
    """Cases of one or several preprocessed nnU-Net data sets, in the form nnU-Net's loader expects."""

    def __init__(self, sources: Sequence[Source], identifiers: Sequence[str]) -> None:
        self.sources = {s.name: s for s in sources}
        self.datasets = {s.name: infer_dataset_class(s.folder)(s.folder, []) for s in sources}
        self.identifiers = sorted(identifiers)

    @staticmethod
    def all_identifiers(sources: Sequence[Source]) -> list[str]:
        """`<data set>/<case>` of every preprocessed case."""
        found = []
        for source in sources:
            found += [f"{source.name}/{c}" for c in infer_dataset_class(source.folder).get_identifiers(source.folder)]
        return sorted(found)

    def split(self, identifier: str) -> tuple[Source, str]:
        """Data set and case of an identifier."""
        name, case = identifier.split("/", 1)
        return self.sources[name], case

    def load_case(self, identifier: str) -> tuple[Any, Any, None, dict[str, Any]]:
        """(image [C, ...], segmentation [1, ...], None, properties), the arrays lazily readable."""
        source, case = self.split(identifier)
        data, seg, _, properties = self.datasets[source.name].load_case(case)
        properties.setdefault("class_locations", {})
        return data, seg, None, properties

    def centre_crop(self, identifier: str, size: Sequence[int]) -> dict[str, Tensor]:
        """The centre of a case: "image" [C, *size] and "excluded" [1, *size], padded where the case is smaller."""
        source, _ = self.split(identifier)
        data, seg, _, _ = self.load_case(identifier)
        shape, flat = data.shape[1:], len(size) == 2
        wanted = (1, *size) if flat else tuple(size)
        box = [[(s - w) // 2, (s - w) // 2 + w] for s, w in zip(shape, wanted, strict=True)]
        image = torch.from_numpy(np.array(crop_and_pad_nd(data, box, 0))).float()
        labels = torch.from_numpy(np.array(crop_and_pad_nd(seg, box, -1)))
        excluded = torch.zeros_like(labels, dtype=torch.bool)
        if source.anonymised_label is not None:
            excluded = labels == source.anonymised_label
        return {"image": image[:, 0] if flat else image, "excluded": excluded[:, 0] if flat else excluded}


class PatchDataset(Dataset[dict[str, Any]]):
    """Random patches by position: the same position always gives the same sample, in whatever process.

    A sample is {"image": [C, *region], "excluded": bool [1, *region], "key": identifier}; with views of R > 1 regions
    image and excluded have a leading axis R and the regions come from independently drawn cases.
    """

    def __init__(
        self,
        corpus: Corpus,
        views: Views,
        read_size: Sequence[int],
        label_manager: LabelManager,
        transforms: Any,
        *,
        seed: int,
        stream: int,
        separate_channels: bool,
        oversample_foreground: float,
    ) -> None:
        self.corpus, self.views, self.seed, self.stream = corpus, views, seed, stream
        self.separate_channels = separate_channels
        self.loader = nnUNetDataLoader(
            corpus,
            1,
            read_size,
            views.region_size,
            label_manager,
            oversample_foreground_percent=oversample_foreground,
            probabilistic_oversampling=True,
            transforms=transforms,
        )
        # An ignore label says where nobody annotated. Without annotations that is no reason to look elsewhere.
        self.loader.has_ignore = False

    def __getitem__(self, position: int) -> dict[str, Any]:
        seed_everything(derive_seed(self.seed, self.stream, position))
        regions = [self._region() for _ in range(self.views.regions)]
        if self.views.regions == 1:
            return regions[0]
        stacked = {k: torch.stack([r[k] for r in regions]) for k in ("image", "excluded")}
        return {**stacked, "key": " + ".join(r["key"] for r in regions)}

    def _region(self) -> dict[str, Any]:
        drawn = self.loader.generate_train_batch()
        image, segmentation, key = drawn["data"][0], drawn["target"][0], drawn["keys"][0]
        if self.separate_channels and len(image) > 1:
            channel = np.random.randint(len(image))
            image = image[channel : channel + 1]
        label = self.corpus.split(key)[0].anonymised_label
        excluded = (
            segmentation[:1] == label if label is not None else torch.zeros(1, *image.shape[1:], dtype=torch.bool)
        )
        return {"image": image, "excluded": excluded, "key": str(key)}


class Positions:
    """Batches of positions, one per step; this process takes `local` of the `total` samples, from `offset` on."""

    def __init__(self, steps: range, total: int, local: int, offset: int, *, repeat: bool) -> None:
        self.steps, self.total, self.local, self.offset, self.repeat = steps, total, local, offset, repeat

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            for step in self.steps:
                first = step * self.total + self.offset
                yield list(range(first, first + self.local))
            if not self.repeat:
                return


def load_batches(
    dataset: PatchDataset, positions: Positions, num_workers: int, pin_memory: bool
) -> Iterator[Mapping[str, Any]]:
    """Batches in the order of their positions; an error in a worker arrives with the worker's own traceback."""
    loader = DataLoader(
        dataset,
        batch_sampler=positions,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=2 if num_workers else None,
    )
    return iter(loader)
