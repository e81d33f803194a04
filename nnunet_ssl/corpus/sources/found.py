"""What a source of images yields: a row per image, the mistakes in it, and what a person should know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from nnunet_ssl.corpus.table import SOURCE_COLUMNS

MAX_SHOWN = 1000  # mistakes printed; more of them have one cause


class Mistake(NamedTuple):
    """One thing that is wrong with a source: where (file, row) and why."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass
class Found:
    """Images of a source. The table has the columns of SOURCE_COLUMNS, `name` (a suggested case name), and any further.

    `images` holds the files of all channels of cases with several; `where` says where a row comes from.
    """

    table: pd.DataFrame
    mistakes: list[Mistake] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as a table that has all columns of a source."""
    return with_source_columns(pd.DataFrame.from_records(list(rows)))


def with_source_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The table with empty columns for what the source does not say."""
    for column in (*SOURCE_COLUMNS, "name", "images", "where"):
        if column not in table:
            table[column] = None
    return table


def combine(parts: Iterable[Found]) -> Found:
    """Several sources as one; an image that several sources name is taken from the first."""
    parts = list(parts)
    table = pd.concat([part.table for part in parts], ignore_index=True)
    mistakes = [m for part in parts for m in part.mistakes]
    notes = [n for part in parts for n in part.notes]
    repeated = table.duplicated(["path", "volume"])
    if repeated.any():
        notes.append(f"{int(repeated.sum())} images are named by more than one source; each is taken once.")
        table = table[~repeated].reset_index(drop=True)
    return Found(table, mistakes, notes)
