"""What was read for a batch, on its way to the device: boxes of different sizes in one piece of memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.trainers.data.augmentation import AffineParams
from nnunet_ssl.trainers.data.finishing import Box, finish
from nnunet_ssl.trainers.data.recycling import SharedMemory, give_back
from nnunet_ssl.views.spec import Views


@dataclass(frozen=True)
class PackedBox:
    """A box within the memory of a `Packed`, and what is still to be done to it; as in `Box`."""

    shape: tuple[int, ...]
    excludes: bool
    affine: AffineParams | None
    mirrored: tuple[int, ...]
    extent: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True)
class Packed:
    """Boxes one behind the other: the images (`dtype`), then the masks of those that have any.

    memory: uint8 [N]; shared: it belongs to a reading process and may be longer.
    """

    memory: Tensor
    dtype: torch.dtype
    entries: tuple[PackedBox, ...]
    shared: bool = False

    def pin_memory(self) -> Packed:
        """Into memory from which a GPU copies by itself; the loader asks for it."""
        return self._moved(self.memory[: self.bytes].pin_memory())

    def to(self, device: torch.device) -> Packed:
        """Onto a device, in one copy."""
        return self._moved(self.memory[: self.bytes].to(device, non_blocking=True, copy=self.shared))

    def _moved(self, memory: Tensor) -> Packed:
        if self.shared:
            give_back(self.memory)
        return Packed(memory, self.dtype, self.entries)

    @property
    def bytes(self) -> int:
        """Length of what holds all boxes."""
        return _bytes(self.entries, self.dtype)[1]

    def boxes(self) -> Iterator[Box]:
        """The boxes, none copied."""
        end, _ = _bytes(self.entries, self.dtype)
        images, masks = self.memory[:end].view(self.dtype), self.memory[end:].view(torch.bool)
        for box in self.entries:
            channels, *read = box.shape
            image, images = images[: channels * prod(read)], images[channels * prod(read) :]
            mask, masks = (masks[: prod(read)].view(1, *read), masks[prod(read) :]) if box.excludes else (None, masks)
            yield Box(image.view(box.shape), mask, box.affine, box.mirrored, box.extent)


def _bytes(entries: Sequence[PackedBox], dtype: torch.dtype) -> tuple[int, int]:
    """(bytes of all images, bytes of all images and masks)."""
    images = sum(prod(p.shape) for p in entries) * dtype.itemsize
    return images, images + sum(prod(p.shape[1:]) for p in entries if p.excludes)


class Packer:
    """Makes a part of a batch of samples {"boxes", "key"}, one copy of each box; in a reading process into shared memory.

    ahead: parts that are ready or on their way, of one reading process.
    """

    def __init__(self, ahead: int = 0) -> None:
        self._shared = SharedMemory(ahead + 2)  # one is being made, another one copied

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        boxes: list[Box] = [box for sample in samples for box in sample["boxes"]]
        entries = tuple(
            PackedBox(tuple(b.image.shape), b.excluded is not None, b.affine, b.mirrored, b.extent) for b in boxes
        )
        masks = [b.excluded.flatten() for b in boxes if b.excluded is not None]
        dtype = reduce(torch.promote_types, (b.image.dtype for b in boxes))
        shared, (middle, end) = get_worker_info() is not None, _bytes(entries, dtype)
        memory = self._shared.take(end) if shared else torch.empty(end, dtype=torch.uint8)
        torch.cat([b.image.flatten() for b in boxes], out=memory[:middle].view(dtype))
        if masks:
            torch.cat(masks, out=memory[middle:end].view(torch.bool))
        return {"packed": Packed(memory, dtype, entries, shared), "key": [sample["key"] for sample in samples]}


def require_same_channels(parts: Sequence[Packed], keys: Sequence[str]) -> None:
    """Raise SettingsError naming two samples of a batch that differ in their number of channels."""
    channels = [box.shape[0] for part in parts for box in part.entries]
    for number, found in enumerate(channels):
        if found != channels[0]:  # copying would repeat a single channel
            key = keys[number * len(keys) // len(channels)]
            raise SettingsError(
                f"The samples of a batch differ in channels: {found} ({key}) and {channels[0]} ({keys[0]})."
            )


def unpack(batch: Mapping[str, Any], views: Views) -> dict[str, Tensor]:
    """The tensors of a batch; boxes are finished now, on the device they were brought to."""
    if "packed" not in batch:
        return {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    boxes = [box for packed in batch["packed"] for box in packed.boxes()]
    return finish(boxes, views.region_size, views.regions)


def tensors_of(batch: Mapping[str, Any]) -> Iterator[Tensor]:
    """What a batch holds on the device."""
    yield from (value for value in batch.values() if isinstance(value, Tensor))
    yield from (packed.memory for packed in batch.get("packed", ()))
