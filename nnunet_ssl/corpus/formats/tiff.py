"""TIFF stacks, with their spacing in a JSON file beside them, as nnU-Net wants it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from os.path import isfile
from typing import Any

import numpy as np
import tifffile

from nnunet_ssl.corpus.formats.header import Header
from nnunet_ssl.errors import UnusableImage
from nnunet_ssl.files.entering import read_json

TIFF = (".tif", ".tiff")


def header(path: str) -> Header:
    """The header of a stack; raises UnusableImage or what tifffile raises."""
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        shape, dtype = series.shape, series.dtype
        last = max(offset + count for page in series.pages for offset, count in _extents(page))
    if len(shape) != 3:
        raise UnusableImage(f"not a volume: shape {list(shape)}, expected [depth, height, width]")
    if os.path.getsize(path) < last:
        raise UnusableImage(f"truncated: {os.path.getsize(path)} bytes, the header announces {last}")
    spacing = spacing_beside(path) or [1.0, 1.0, 1.0]
    return Header(tuple(int(n) for n in shape), tuple(spacing), 1, str(np.dtype(dtype)), None)


def read(files: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """(image [C, D, H, W], {"spacing": [mm]}) of one file per channel; raises UnusableImage."""
    images = [np.asarray(tifffile.imread(file), dtype=np.float32) for file in files]
    for image in images:
        if image.ndim != 3 or image.shape != images[0].shape:
            raise UnusableImage(f"not a volume: shape {list(image.shape)}, expected [depth, height, width]")
    return np.stack(images), {"spacing": spacing_beside(files[0]) or [1.0, 1.0, 1.0]}


def spacing_beside(path: str) -> list[float] | None:
    """The spacing [mm] in the JSON file that nnU-Net expects beside a TIFF, with or without the channel's number."""
    stem = path[: path.rindex(".")]
    without_channel = stem[:-5] if stem[-5:-4] == "_" and stem[-4:].isdigit() else stem
    for candidate in (f"{stem}.json", f"{without_channel}.json"):
        if isfile(candidate):
            content = read_json(candidate)
            if isinstance(content, dict) and "spacing" in content:
                return [float(s) for s in content["spacing"]]
    return None


def _extents(page: Any) -> Iterator[tuple[int, int]]:
    page = page.keyframe if page is not None and not hasattr(page, "dataoffsets") else page
    if page is not None:
        yield from zip(page.dataoffsets, page.databytecounts, strict=True)
