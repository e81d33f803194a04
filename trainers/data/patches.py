"""Patches whose content depends on nothing but (seed, stream, position)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nnunet_ssl.trainers.data.augmentation import Augmentation
from nnunet_ssl.trainers.data.corpus import Corpus, derive_seed, image_extent, read_box
from nnunet_ssl.trainers.data.finishing import Box, finish_box
from nnunet_ssl.trainers.data.patch_sampler import PatchSampler
from nnunet_ssl.views.spec import Views

JOINED = " + "  # between the cases of a sample that has several


class PatchDataset(Dataset[dict[str, Any]]):
    """Random patches by position: the same position always gives the same sample, in whatever process.

    A sample is {"image": [C, *region], "excluded": bool [1, *region], "key": identifier}; with views of R > 1 regions
    image and excluded have a leading axis R and the regions come from independently drawn cases. With `finish_later` a sample
    is {"boxes": [R], "key"}: what was read, see `finishing`. `weights` (sum 1) says how often each of the corpus' identifiers is
    drawn; None: all alike.
    """

    def __init__(
        self,
        corpus: Corpus,
        views: Views,
        augmentation: Augmentation,
        sampler: PatchSampler,
        *,
        seed: int,
        stream: int,
        separate_channels: bool,
        weights: Sequence[float] | np.ndarray | None = None,
        finish_later: bool = False,
    ) -> None:
        self.corpus, self.views, self.augmentation, self.sampler = corpus, views, augmentation, sampler
        self.seed, self.stream, self.separate_channels = seed, stream, separate_channels
        self.finish_later = finish_later
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
            return self._sample()
        finally:
            if threads > 1:
                torch.set_num_threads(threads)

    def bytes_per_sample(self) -> int:
        """Bytes that a sample has at most, as far as that is known before reading: half precision takes half of them."""
        datasets = self.corpus.datasets.values()
        channels = 1 if self.separate_channels else max([1, *(len(s.channels) for s in datasets)])
        size, masks = self.views.region_size, True
        if self.finish_later:
            size, masks = self.augmentation.largest_read(), any(s.anonymised_label is not None for s in datasets)
        return self.views.regions * prod(size) * (4 * channels + masks)

    def draw_case(self) -> str:
        """An identifier, drawn from numpy's global generator."""
        identifiers = self.corpus.identifiers
        if self._cumulative is None:
            return identifiers[np.random.randint(len(identifiers))]
        row = np.searchsorted(self._cumulative, np.random.uniform() * self._cumulative[-1], side="right")
        return identifiers[min(int(row), len(identifiers) - 1)]

    @torch.no_grad()
    def _sample(self) -> dict[str, Any]:
        keys, boxes = zip(*(self._read() for _ in range(self.views.regions)), strict=True)
        key = JOINED.join(keys)
        if self.finish_later:
            return {"boxes": boxes, "key": key}
        images, excluded = zip(*(finish_box(b, self.views.region_size, by_products=True) for b in boxes), strict=True)
        image = [x.float() for x in images]
        masks = [_as_mask(m, x) for m, x in zip(excluded, image, strict=True)]
        if self.views.regions == 1:
            return {"image": image[0], "excluded": masks[0], "key": key}
        return {"image": torch.stack(image), "excluded": torch.stack(masks), "key": key}

    def _read(self) -> tuple[str, Box]:
        """Identifier and box of a region that is drawn now."""
        key = self.draw_case()
        dataset, _ = self.corpus.split(key)
        array = self.corpus.image(key)
        several = self.separate_channels and array.shape[0] > 1
        channel = np.random.randint(array.shape[0]) if several else None
        flat = len(self.views.region_size) == 2
        size = (1, *self.views.region_size) if flat else self.views.region_size
        corner = self.sampler.draw(dataset, array.shape[1:], size, lambda: self.corpus.properties(key))
        affine = self.augmentation.draw()
        read = self.augmentation.read_size(affine)
        read = (1, *read) if flat else read
        start = [c - (r - s) // 2 for c, r, s in zip(corner, read, size, strict=True)]
        image, excluded = read_box(array, start, read, channel), None
        extent = image_extent(array.shape[1:], start, read)
        if dataset.anonymised_label is not None:
            labels = read_box(self.corpus.labels(key), start, read, dtype=np.int16)
            excluded = labels == dataset.anonymised_label
            excluded = excluded if excluded.any() else None  # most patches show no anonymised face
        if flat:
            image, excluded = image[:, 0], None if excluded is None else excluded[:, 0]
            extent = None if extent is None else extent[1:]
        return key, Box(image, excluded, affine, self.augmentation.draw_mirrored(), extent)


def _as_mask(excluded: Tensor | None, image: Tensor) -> Tensor:
    return torch.zeros(1, *image.shape[1:], dtype=torch.bool) if excluded is None else excluded
