"""Patches whose content depends on nothing but (seed, stream, position)."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nnunet_ssl.trainers.augmentation import Augmentation
from nnunet_ssl.trainers.data import Corpus, derive_seed, read_box
from nnunet_ssl.trainers.places import Places
from nnunet_ssl.views.spec import Views

AHEAD = 4  # large batches that are ready or being made; of small ones, each worker has two
PART_BYTES = 32 << 20  # sending a part takes about a millisecond, however small it is


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

    def bytes_per_sample(self) -> int:
        """Bytes of a sample, as far as they are known before reading."""
        channels = 1 if self.separate_channels else max([1, *(len(s.channels) for s in self.corpus.sources.values())])
        return self.views.regions * prod(self.views.region_size) * (4 * channels + 1)

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


@dataclass(frozen=True)
class Parts:
    """How the samples of a process' batch are shared among the reading processes: each makes `size` of them at a time.

    A small batch is made in one piece. A large one is made by several processes, so that none of them ever holds all of it, and
    no more than a few batches are on their way, however many processes read.
    """

    samples: int
    size: int

    @classmethod
    def of(cls, samples: int, bytes_per_sample: int) -> Parts:
        """As even as possible, none above `PART_BYTES` unless a sample is."""
        number = -(-samples // max(1, PART_BYTES // bytes_per_sample))
        return cls(samples, -(-samples // number))

    def prefetched(self, workers: int, batches: int) -> int:
        """Parts that each of the workers has ready: enough for so many batches, and no fewer than two."""
        return max(2, -(-batches * -(-self.samples // self.size) // workers))

    def split(self, positions: Iterable[list[int]]) -> Iterator[list[int]]:
        """The positions of every part, batch by batch."""
        for batch in positions:
            yield from (batch[i : i + self.size] for i in range(0, len(batch), self.size))

    def join(self, parts: Iterable[Mapping[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
        """Batches on the device, every part written to its place; raises ValueError when samples differ in shape."""
        batch: dict[str, Tensor] = {}
        keys: list[str] = []
        for part in parts:
            tensors = {k: v for k, v in part.items() if isinstance(v, Tensor)}
            if self.size == self.samples:
                yield {**part, **{k: v.to(device, non_blocking=True) for k, v in tensors.items()}}
                continue
            if not keys:
                batch = {k: v.new_empty((self.samples, *v.shape[1:]), device=device) for k, v in tensors.items()}
            for name, whole in batch.items():
                if tensors[name].shape[1:] != whole.shape[1:]:  # copying would repeat a single channel
                    raise ValueError(
                        f"The samples of a batch differ in shape: {tuple(tensors[name].shape[1:])} ({part['key'][0]}) and "
                        f"{tuple(whole.shape[1:])} ({keys[0]})."
                    )
                whole[len(keys) :][: len(part["key"])].copy_(tensors[name], non_blocking=True)
            keys += part["key"]
            if len(keys) == self.samples:
                ready: list[dict[str, Any]] = [{**batch, "key": keys}]
                batch, keys, tensors = {}, [], {}
                del whole
                yield ready.pop()  # whoever gets it is the only one who keeps it


def load_batches(
    dataset: PatchDataset, positions: Positions, num_workers: int, device: torch.device, ahead: int = AHEAD
) -> Iterator[Mapping[str, Any]]:
    """Batches in the order of their positions; an error in a worker arrives with the worker's own traceback.

    ahead: as `AHEAD`.
    """
    parts = Parts.of(positions.local, dataset.bytes_per_sample())
    loader = DataLoader(
        dataset,
        batch_sampler=parts.split(positions),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=parts.prefetched(num_workers, ahead) if num_workers else None,
        worker_init_fn=leave_inherited_memory_alone if num_workers else None,
    )
    batches = parts.join(iter(loader), device)  # the workers begin now, not with the first batch
    return copy_ahead(batches, device) if device.type == "cuda" else batches


def leave_inherited_memory_alone(_: int) -> None:
    """Keep the garbage collector of a forked process off the objects it shares: looking at them copies their pages."""
    gc.freeze()


def copy_ahead(batches: Iterator[Mapping[str, Any]], device: torch.device) -> Iterator[Mapping[str, Any]]:
    """Batches that are put together on a GPU from pinned memory, on a stream of their own, beside what the GPU is computing.

    Training steps are queued without waiting for their results, so that the copy starts while the step before is running.
    """
    stream = torch.cuda.Stream(device)
    while True:
        with torch.cuda.stream(stream):
            batch = next(batches, None)
        if batch is None:
            return
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        for value in batch.values():
            if isinstance(value, Tensor):
                value.record_stream(computing)  # its memory is not given away before the step has used it
        yield batch
