"""Fill a table with what files and headers say: size, time of change, shape, spacing, problems, volumes of series."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd

from nnunet_ssl.corpus.address import MEAN
from nnunet_ssl.corpus.formats.header import Header
from nnunet_ssl.corpus.headers import read_headers
from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.corpus.subjects import subject_of
from nnunet_ssl.corpus.table import HEADER_COLUMNS, SHAPE, SPACING, has_table, numbers, read_table, typed

SERIES = ("first", "mean", "all")
CHUNK = 1024


def describe_dataset(folder: str, num_threads: int = 8, show_progress: bool = True) -> pd.DataFrame:
    """The table of any nnU-Net data set: the stored one, otherwise one made from dataset.json, the headers and the names.

    Raises CorpusError when the data set cannot be read.
    """
    if has_table(folder):
        return read_table(folder, with_problems=True)
    dataset_json = read_dataset_json(folder)
    cases = list_images(folder, dataset_json)
    names = [str(name) for name in dataset_json["channel_names"].values()]
    table = pd.DataFrame(
        {
            "case": list(cases),
            "path": [case["images"][0] for case in cases.values()],
            "subject": [subject_of(case) for case in cases],
            "modality": names[0] if len(names) == 1 else "+".join(names),
            "dataset": os.path.basename(os.path.normpath(folder)),
            "label": [case["label"] for case in cases.values()],
            "channels": [len(case["images"]) for case in cases.values()],
        }
    )
    return typed(add_headers(table, num_threads, show_progress))


def add_files(table: pd.DataFrame, num_threads: int) -> pd.DataFrame:
    """The table with `bytes` and `modified` (seconds since 1970) of every file, missing where there is no file."""

    def look(paths: Sequence[str]) -> list[tuple[float, float]]:
        found: list[tuple[float, float]] = []
        for path in paths:
            try:
                status = os.stat(path)
                found.append((status.st_size, status.st_mtime))
            except OSError:
                found.append((np.nan, np.nan))
        return found

    paths = table["path"].tolist()
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        values = np.array([pair for chunk in pool.map(look, chunks) for pair in chunk]).reshape(-1, 2)
    return table.assign(bytes=values[:, 0], modified=values[:, 1])


def add_headers(table: pd.DataFrame, num_threads: int, show_progress: bool = True) -> pd.DataFrame:
    """The table with the columns of HEADER_COLUMNS and `problem`: the reason why an image is unusable, missing otherwise."""
    # Before the headers: of a file that changes in between, the next import sees that it did.
    table = add_files(table, num_threads)
    count = len(table)
    numbers = {name: np.full(count, np.nan) for name, kind in HEADER_COLUMNS.items() if kind != "text"}
    texts: dict[str, list[str | None]] = {name: [None] * count for name in ("dtype", "orientation", "problem")}
    paths = table["path"].tolist()
    for row, header in enumerate(read_headers(paths, num_threads, show_progress)):
        if isinstance(header, str):
            texts["problem"][row] = header
            continue
        for name, value in zip(
            (*SHAPE, *SPACING, "volumes"), (*header.shape, *header.spacing, header.volumes), strict=True
        ):
            numbers[name][row] = value
        texts["dtype"][row], texts["orientation"][row] = header.dtype, header.orientation
    return add_slices(table.assign(**numbers, **texts))


def add_slices(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `thickness`, the largest spacing [mm], and `slices`, the voxels along that axis.

    Where several axes have the largest spacing, the one with the fewest voxels counts.
    """
    shape, spacing = numbers(table, SHAPE), numbers(table, SPACING)
    thickness = spacing.max(axis=1, initial=-np.inf)
    slices = np.where(spacing >= thickness[:, None] * 0.999, shape, np.inf).min(axis=1, initial=np.inf)
    return table.assign(thickness=thickness, slices=np.where(np.isfinite(slices), slices, np.nan))


def unroll_series(table: pd.DataFrame, series: str) -> tuple[pd.DataFrame, int]:
    """(table, number of 4-D files): every series as its first volume, its mean, or all its volumes, each a row.

    Rows whose `volume` the source names stay as they are.
    """
    unread = table["volume"].isna() & (table["volumes"].fillna(1).astype(int) > 1)
    number = int(unread.sum())
    if not number:
        return table, 0
    table = table.assign(volume=table["volume"].astype(object))
    if series != "all":
        table.loc[unread, "volume"] = MEAN if series == "mean" else "0"
        return table, number
    repeats = np.where(unread, table["volumes"].fillna(1), 1).astype(int)
    within = np.concatenate([np.arange(n) for n in repeats])
    rows = np.repeat(np.arange(len(table)), repeats)
    unrolled = table.iloc[rows].reset_index(drop=True)
    of_series = unread.to_numpy()[rows]
    unrolled.loc[of_series, "volume"] = [str(n) for n in within[of_series]]
    unrolled.loc[of_series, "name"] = [
        f"{name}_v{n:03d}" for name, n in zip(unrolled.loc[of_series, "name"], within[of_series], strict=True)
    ]
    return unrolled, number


def compare_masks(table: pd.DataFrame, column: str, num_threads: int) -> dict[int, str]:
    """{position: reason} for the masks in `column` that cannot belong to their image, by their headers."""
    rows = np.flatnonzero((table[column].notna() & table["problem"].isna()).to_numpy())
    headers = read_headers(table[column].iloc[rows].tolist(), num_threads, show_progress=False)
    shapes = numbers(table, SHAPE)[rows]
    return {
        int(row): reason
        for row, header, shape in zip(rows, headers, shapes, strict=True)
        if (reason := _misfit(header, shape, column))
    }


def _misfit(header: Header | str, shape: Any, column: str) -> str | None:
    name = column.replace("_", " ")
    if isinstance(header, str):
        return f"its {name} is unusable: {header}"
    if list(header.shape) != shape.tolist():
        return f"its {name} has {list(header.shape)} voxels, the image has {[int(n) for n in shape]}"
    return None
