"""corpus.parquet: a row per image of a data set, with everything that is known about it.

nnU-Net's dataset.json says which files to read; the table beside it says what they are. Every later step (overview,
filters, sampling, splits) works on the table, and none opens an image for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import isfile, join
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.atomic import atomic_write

FILE = "corpus.parquet"
TEXT, NUMBER, WHOLE = "text", "number", "whole number"
# What the columns mean is in docs/corpus.md. Sources may bring any others.
SOURCE_COLUMNS = {
    "path": TEXT,
    "volume": TEXT,
    "subject": TEXT,
    "session": TEXT,
    "modality": TEXT,
    "dataset": TEXT,
    "anatomy_mask": TEXT,
    "anonymisation_mask": TEXT,
    "label": TEXT,
}
HEADER_COLUMNS = {
    "depth": WHOLE,
    "height": WHOLE,
    "width": WHOLE,
    "spacing_z": NUMBER,
    "spacing_y": NUMBER,
    "spacing_x": NUMBER,
    "slices": WHOLE,
    "thickness": NUMBER,
    "volumes": WHOLE,
    "dtype": TEXT,
    "orientation": TEXT,
}
SHAPE, SPACING = ("depth", "height", "width"), ("spacing_z", "spacing_y", "spacing_x")
COLUMNS = {
    "case": TEXT,
    **SOURCE_COLUMNS,
    "channels": WHOLE,
    **HEADER_COLUMNS,
    "bytes": WHOLE,
    "modified": NUMBER,
    "problem": TEXT,
}


def has_table(folder: str) -> bool:
    """Whether a raw data set's folder has a table."""
    return isfile(join(folder, FILE))


def read_table(folder: str, columns: Sequence[str] | None = None, *, with_problems: bool = False) -> pd.DataFrame:
    """The table of a raw data set, one row per case; with `columns`, no others are read.

    Images that were found unusable at import have a `problem` and are left out unless `with_problems`. Raises
    CorpusError when there is no table or it cannot be read.
    """
    path = join(folder, FILE)
    if not isfile(path):
        raise CorpusError(
            f"There is no {path}. nnUNetv2_pretrain_import writes it; data sets made otherwise have none."
        )
    try:
        wanted = None if columns is None else [*dict.fromkeys([*columns, "problem"])]
        table = pq.read_table(path, columns=wanted).to_pandas()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise CorpusError(f"{path} cannot be read: {error}. Remove it and import again.") from error
    table = table if with_problems else table[table["problem"].isna()].reset_index(drop=True)
    return table if columns is None else table[list(columns)]


def write_table(table: pd.DataFrame, folder: str) -> None:
    """Write the table."""
    with atomic_write(join(folder, FILE)) as file:
        pq.write_table(pa.Table.from_pandas(typed(table), preserve_index=False), file, compression="zstd")


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with all standard columns, each with its type, the others after them as numbers, truth values or text."""
    columns: dict[str, Any] = {}
    for name, kind in COLUMNS.items():
        column = table[name] if name in table else pd.Series([None] * len(table), index=table.index, dtype=object)
        columns[name] = _as(column, kind)
    for name in table.columns:
        if name not in columns:
            columns[str(name)] = _settled(table[name])
    return pd.DataFrame(columns, index=table.index)


def numbers(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Columns of numbers [N, columns] as floats, NaN where there is none: whatever type pandas keeps them in."""
    of_each = [table[name].astype("Float64").to_numpy(dtype=float, na_value=np.nan) for name in columns]
    return np.stack(of_each, axis=1) if len(table) else np.empty((0, len(columns)))


def _as(column: pd.Series, kind: str) -> pd.Series:
    if kind == TEXT:
        return column.astype("string")
    return pd.to_numeric(column).astype("Float64" if kind == NUMBER else "Int64")


def _settled(column: pd.Series) -> pd.Series:
    """A further column as numbers or truth values if all its values are such, otherwise as text."""
    if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype):
        return column
    present = column[column.notna()]
    kinds = {type(value) for value in present}
    if kinds == {bool}:
        return column.astype("boolean")
    if kinds and kinds <= {int, float}:
        return pd.to_numeric(column)
    return column.where(column.isna(), column.map(str, na_action="ignore")).astype("string")
