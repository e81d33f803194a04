"""Patches whose content depends on nothing but (seed, stream, position)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nnunet_ssl.trainers.augmentation import Augmentation
from nnunet_ssl.trainers.data import Corpus, derive_seed, read_box
from nnunet_ssl.trainers.places import Places
from nnunet_ssl.views.spec import Views


class PatchDataset(Dataset[dict[str, Any]]):
    """Random patches by position: the same position always gives the same sample, in whatever process.

    A sample is {"image": [C, *region], "excluded": bool [1, *region], "key": identifier}; with views of R > 1 regions
    image and excluded have a leading axis R and the regions come from independently drawn cases. `weights` (sum 1) says how
    often each of the corpus' identifiers is drawn; None: all alike.
    """

    def __init__(
        self,
        corpus: Corpus,
        views: Views,
        augmentation: Augmentation,
        places: Places,
        *,
        seed: int,
        stream: int,
        separate_channels: bool,
        weights: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        self.corpus, self.views, self.augmentation, self.places = corpus, views, augmentation, places
        self.seed, self.stream, self.separate_channels = seed, stream, separate_channels
        self._cumulative = None if weights is None else np.cumsum(np.asarray(weights, dtype=float))
        if self._cumulative is not None and len(self._cumulative) != len(corpus.identifiers):
            raise ValueError(f"{len(self._cumulative)} weights for {len(corpus.identifiers)} images.")

    def __getitem__(self, position: int) -> dict[str, Any]:
        seed = derive_seed(self.seed, self.stream, position)
        np.random.seed(seed)
        # torch.manual_seed would ask for GPUs as well, which takes longer than reading a small patch.
        torch.default_generator.manual_seed(seed)
        threads = torch.get_num_threads()
        # Several threads add up in another order: results must not depend on where a patch is made.
        if threads > 1:
            torch.set_num_threads(1)
        try:
            regions = [self._region() for _ in range(self.views.regions)]
        finally:
            if threads > 1:
                torch.set_num_threads(threads)
        if self.views.regions == 1:
            return regions[0]
        stacked = {k: torch.stack([r[k] for r in regions]) for k in ("image", "excluded")}
        return {**stacked, "key": " + ".join(r["key"] for r in regions)}

    def draw_case(self) -> str:
        """An identifier, drawn from numpy's global generator."""
        identifiers = self.corpus.identifiers
        if self._cumulative is None:
            return identifiers[np.random.randint(len(identifiers))]
        row = np.searchsorted(self._cumulative, np.random.uniform() * self._cumulative[-1], side="right")
        return identifiers[min(int(row), len(identifiers) - 1)]

    @torch.no_grad()
    def _region(self) -> dict[str, Any]:
        key = self.draw_case()
        source, _ = self.corpus.split(key)
        array = self.corpus.image(key)
        several = self.separate_channels and array.shape[0] > 1
        channel = np.random.randint(array.shape[0]) if several else None
        flat = len(self.views.region_size) == 2
        size = (1, *self.views.region_size) if flat else self.views.region_size
        corner = self.places.draw(source, array.shape[1:], size, lambda: self.corpus.properties(key))
        turn = self.augmentation.draw()
        read = self.augmentation.read_size(turn)
        read = (1, *read) if flat else read
        start = [c - (r - s) // 2 for c, r, s in zip(corner, read, size, strict=True)]
        image, excluded = read_box(array, start, read, channel), None
        if source.anonymised_label is not None:
            labels = read_box(self.corpus.labels(key), start, read)
            excluded = (labels == source.anonymised_label).to(torch.int16)
        if flat:
            image, excluded = image[:, 0], None if excluded is None else excluded[:, 0]
        image, excluded = self.augmentation.apply(image, excluded, turn)
        return {"image": image, "excluded": _as_mask(excluded, image), "key": key}


def _as_mask(excluded: Tensor | None, image: Tensor) -> Tensor:
    return torch.zeros(1, *image.shape[1:], dtype=torch.bool) if excluded is None else excluded > 0


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
    dataset: PatchDataset, positions: Positions, num_workers: int, device: torch.device
) -> Iterator[Mapping[str, Any]]:
    """Batches in the order of their positions; an error in a worker arrives with the worker's own traceback."""
    loader = DataLoader(
        dataset,
        batch_sampler=positions,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=2 if num_workers else None,
    )
    return copy_ahead(iter(loader), device) if device.type == "cuda" else iter(loader)


def copy_ahead(batches: Iterator[Mapping[str, Any]], device: torch.device) -> Iterator[Mapping[str, Any]]:
    """The batches on a GPU, copied from pinned memory on a stream of their own, beside what the GPU is computing.

    Training steps are queued without waiting for their results, so that the copy starts while the step before is running.
    """
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        for value in moved.values():
            if isinstance(value, Tensor):
                value.record_stream(computing)  # its memory is not given away before the step has used it
        yield moved
