"""How preprocessed images are stored: nnU-Net's files, in single or half precision, compressed for partial reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

from nnunet_ssl.errors import CorpusError, UnusableImage
from nnunet_ssl.files.folders import explaining
from nnunet_ssl.planners.sharing.finished import SUFFIXES

KEY = "storage_dtype"  # in a configuration of the plans; nnU-Net's float32 where it is absent
STORAGE = ("float32", "float16")
# As small as nnssl's level 8 to within 2 % and smaller than nnU-Net's LZ4HC, written several times faster than
# either (docs/preprocessing.md).
CODEC, LEVEL = blosc2.Codec.ZSTD, 1
# Bytes of equal weight side by side make resampled images small, and others that hold few distinct values large.
RESAMPLED = [blosc2.Filter.SHUFFLE]


def require_storage(name: object) -> str:
    """`name` if it is a type images are stored in; raises CorpusError naming those that are."""
    if name not in STORAGE:
        raise CorpusError(f"Images are stored as {' or '.join(STORAGE)}, found {name!r}.")
    return str(name)


def storage_dtype(configuration: Mapping[str, Any]) -> np.dtype[Any]:
    """The type in which a configuration of plans stores images; raises CorpusError for one that is none."""
    return np.dtype(require_storage(configuration.get(KEY, STORAGE[0])))


def save_case(
    data: np.ndarray,
    seg: np.ndarray,
    properties: Mapping[str, Any],
    path: str,
    patch_size: Sequence[int],
    dtype: np.dtype[Any],
) -> None:
    """Write a case [C, D, H, W], [1, D, H, W] to `path` without its ending, in parts that suit reading `patch_size`.

    nnU-Net's dataset class and loaders read it, half precision included. Raises UnusableImage for values that `dtype`
    cannot hold.
    """
    if dtype == np.float16:
        largest = float(np.abs(data).max())
        if largest > float(np.finfo(np.float16).max):
            raise UnusableImage(f"values up to {largest:g} do not fit into float16; store float32")
    data, seg = data.astype(dtype, copy=False), seg.astype(np.int16, copy=False)
    blocks, chunks = comp_blosc2_params(data.shape, tuple(patch_size), data.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, tuple(patch_size), seg.itemsize)
    cropped = properties.get("shape_after_cropping_and_before_resampling")
    with explaining(os.path.dirname(path)):
        nnUNetDatasetBlosc2.save_case(
            data,
            seg,
            dict(properties),
            path,
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks_seg,
            blocks_seg=blocks_seg,
            clevel=LEVEL,
            codec=CODEC,
            filters=None if cropped is None or tuple(cropped) == data.shape[1:] else RESAMPLED,  # None: nnU-Net tries
            filters_seg=[blosc2.Filter.NOFILTER],
        )
        for suffix in SUFFIXES:  # on the disk before the case counts as finished, in case the machine fails
            if os.path.exists(path + suffix):
                with open(path + suffix, "rb+") as file:
                    os.fsync(file.fileno())
