"""Gather everything the overview of a data set shows."""

from __future__ import annotations

import os
from os.path import basename, join, normpath

import pandas as pd

from nnunet_ssl.corpus.left_out import read_left_out
from nnunet_ssl.corpus.overview.duplicates import find_duplicates
from nnunet_ssl.corpus.overview.samples import Sample, read_samples
from nnunet_ssl.corpus.overview.sections import Section, overview

MAX_VALUES = 8


def build_overview(
    folder: str, table: pd.DataFrame, *, num_samples: int, duplicates: bool, num_processes: int
) -> tuple[list[Section], list[Sample]]:
    """(sections, samples) on the images of a raw data set that are in the table."""
    samples = read_samples(folder, table, num_samples, num_processes) if num_samples else []
    good = table[table["problem"].isna()]
    groups = find_duplicates(good["path"].tolist(), num_processes) if duplicates else None
    cases = set(good["case"])
    reasons = {case: entry["reason"] for case, entry in _left_out(folder).items() if case in cases}
    return overview(table, samples, groups, reasons, num_processes), samples


def describe_columns(table: pd.DataFrame) -> str:
    """Every column with its values, for those who write filters."""
    lines = []
    for name in table.columns:
        column = table[name]
        values = column.dropna()
        if not len(values):
            shown = "no values"
        elif pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
            shown = f"{values.min():g} to {values.max():g}"
        else:
            counts = values.value_counts()
            shown = ", ".join(str(v) for v in counts.index[:MAX_VALUES]) + (", ..." if len(counts) > MAX_VALUES else "")
        missing = int(column.isna().sum())
        lines.append(f"  {name}: {shown}" + (f" ({missing} missing)" if 0 < missing < len(table) else ""))
    return "\n".join(lines)


def _left_out(folder: str) -> dict[str, dict[str, str]]:
    preprocessed = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112, nnU-Net's name
    return read_left_out(join(preprocessed, basename(normpath(folder)))) if preprocessed else {}
