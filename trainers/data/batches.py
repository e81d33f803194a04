"""Batches in the order of their positions, made by several reading processes and brought to the device."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nnunet_ssl.signals import guarded_forks, obey
from nnunet_ssl.trainers.data.packing import Packer, require_same_channels, tensors_of
from nnunet_ssl.trainers.data.patches import PatchDataset

AHEAD = 4  # large batches that are ready or being made; of small ones, each worker has two
CHUNK_BYTES = 32 << 20  # sending a chunk takes about a millisecond, however small it is


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
class Chunks:
    """How the samples of a process' batch are shared among the reading processes: each makes `size` of them at a time.

    A small batch is made in one piece. A large one is made by several processes, so that none of them ever holds all of it, and
    no more than a few batches are on their way, however many processes read.
    """

    samples: int
    size: int

    @classmethod
    def of(cls, samples: int, bytes_per_sample: int) -> Chunks:
        """Chunks that are as even as possible, none above `CHUNK_BYTES` unless a sample is."""
        number = -(-samples // max(1, CHUNK_BYTES // bytes_per_sample))
        return cls(samples, -(-samples // number))

    def prefetched(self, workers: int, batches: int) -> int:
        """Chunks that each of the workers has ready: enough for so many batches, and no fewer than two."""
        return max(2, -(-batches * -(-self.samples // self.size) // workers))

    def split(self, positions: Iterable[list[int]]) -> Iterator[list[int]]:
        """The positions of every chunk, batch by batch."""
        for batch in positions:
            yield from (batch[i : i + self.size] for i in range(0, len(batch), self.size))

    def join(self, chunks: Iterable[Mapping[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
        """Batches on the device, every chunk written to its place; raises ValueError when samples differ in shape."""
        batch: dict[str, Tensor] = {}
        keys: list[str] = []
        for chunk in chunks:
            tensors = {k: v for k, v in chunk.items() if isinstance(v, Tensor)}
            if self.size == self.samples:
                yield {**chunk, **{k: v.to(device, non_blocking=True) for k, v in tensors.items()}}
                continue
            if not keys:
                batch = {k: v.new_empty((self.samples, *v.shape[1:]), device=device) for k, v in tensors.items()}
            for name, whole in batch.items():
                if tensors[name].shape[1:] != whole.shape[1:]:  # copying would repeat a single channel
                    raise ValueError(
                        f"The samples of a batch differ in shape: {tuple(tensors[name].shape[1:])} ({chunk['key'][0]}) and "
                        f"{tuple(whole.shape[1:])} ({keys[0]})."
                    )
                whole[len(keys) :][: len(chunk["key"])].copy_(tensors[name], non_blocking=True)
            keys += chunk["key"]
            if len(keys) == self.samples:
                ready: list[dict[str, Any]] = [{**batch, "key": keys}]
                batch, keys, tensors = {}, [], {}
                del whole
                yield ready.pop()  # whoever gets it is the only one who keeps it

    def gather(self, chunks: Iterable[Mapping[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
        """Batches of boxes on the device: "packed" holds the chunks as they come, "key" the keys of all their samples.

        Raises SettingsError when samples differ in their number of channels.
        """
        batch: dict[str, list[Any]] = {"packed": [], "key": []}
        for chunk in chunks:
            batch["packed"].append(chunk["packed"].to(device))
            batch["key"] += chunk["key"]
            if len(batch["key"]) == self.samples:
                require_same_channels(batch["packed"], batch["key"])
                ready, batch = [batch], {"packed": [], "key": []}
                yield ready.pop()  # as in `join`


def load_batches(
    dataset: PatchDataset, positions: Positions, num_workers: int, device: torch.device, ahead: int = AHEAD
) -> Iterator[Mapping[str, Any]]:
    """Batches in the order of their positions; an error in a worker arrives with the worker's own traceback.

    ahead: as `AHEAD`.
    """
    chunks = Chunks.of(positions.local, dataset.bytes_per_sample())
    prefetched = chunks.prefetched(num_workers, ahead) if num_workers else None
    loader = DataLoader(
        dataset,
        batch_sampler=chunks.split(positions),
        collate_fn=Packer(prefetched or 0) if dataset.finish_later else None,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=prefetched,
        worker_init_fn=partial(begin_to_read, os.getpid()) if num_workers else None,
    )
    join = chunks.gather if dataset.finish_later else chunks.join
    with guarded_forks():
        batches = join(iter(loader), device)  # the workers begin now, not with the first batch
    return copy_ahead(batches, device) if device.type == "cuda" else batches


def begin_to_read(parent: int, _: int) -> None:
    """In a reading process: signals are the parent's business, and so is its end.

    And the garbage collector keeps off the objects that a forked process shares: looking at them copies their pages.
    """
    obey(parent)
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
        for tensor in tensors_of(batch):
            tensor.record_stream(computing)  # its memory is not given away before the step has used it
        yield batch
