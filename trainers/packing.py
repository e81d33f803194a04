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

from nnunet_ssl.trainers.augmentation import Turn
from nnunet_ssl.trainers.finishing import Box, finish
from nnunet_ssl.views.spec import Views


@dataclass(frozen=True)
class Place:
    """A box within the memory of a `Packed`, and what is still to be done to it; as in `Box`."""

    shape: tuple[int, ...]
    excludes: bool
    turn: Turn | None
    mirrored: tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """Boxes one behind the other: `voxels` [N] of all images, `excluded` (bool) [M] of those that have any."""

    voxels: Tensor
    excluded: Tensor
    places: tuple[Place, ...]

    def pin_memory(self) -> Packed:
        """Into memory from which a GPU copies by itself; the loader asks for it."""
        return Packed(self.voxels.pin_memory(), self.excluded.pin_memory(), self.places)

    def to(self, device: torch.device) -> Packed:
        """Onto a device, in one copy, or two where voxels are excluded."""
        voxels, excluded = (x.to(device, non_blocking=True) for x in (self.voxels, self.excluded))
        return Packed(voxels, excluded, self.places)

    def boxes(self) -> Iterator[Box]:
        """The boxes, none copied."""
        first = hidden = 0
        for place in self.places:
            own = prod(place.shape[1:])
            image = self.voxels[first : first + place.shape[0] * own].view(place.shape)
            excluded = self.excluded[hidden : hidden + own].view(1, *place.shape[1:]) if place.excludes else None
            first, hidden = first + place.shape[0] * own, hidden + own * place.excludes
            yield Box(image, excluded, place.turn, place.mirrored)


def pack(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A part of a batch of samples {"boxes", "key"}, one copy of each box; in a reading process into shared memory."""
    boxes = [box for sample in samples for box in sample["boxes"]]
    places = tuple(Place(tuple(b.image.shape), b.excluded is not None, b.turn, b.mirrored) for b in boxes)
    masks = [b.excluded for b in boxes if b.excluded is not None]
    packed = Packed(
        _joined([b.image for b in boxes]), _joined(masks) if masks else torch.zeros(0, dtype=torch.bool), places
    )
    return {"packed": packed, "key": [sample["key"] for sample in samples]}


def require_same_channels(parts: Sequence[Packed], keys: Sequence[str]) -> None:
    """Raise ValueError naming two samples of a batch that differ in their number of channels."""
    channels = [place.shape[0] for part in parts for place in part.places]
    for number, found in enumerate(channels):
        if found != channels[0]:  # copying would repeat a single channel
            key = keys[number * len(keys) // len(channels)]
            raise ValueError(
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
    for packed in batch.get("packed", ()):
        yield from (packed.voxels, packed.excluded)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors))
    number = sum(t.numel() for t in tensors)
    out = torch.empty(0, dtype=dtype)
    if get_worker_info() is not None:  # as in torch's own collate function, which saves a copy so
        out.set_(torch.UntypedStorage._new_shared(number * dtype.itemsize))
    return torch.cat([t.flatten() for t in tensors], out=out)
