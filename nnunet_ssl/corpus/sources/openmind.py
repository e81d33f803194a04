"""The OpenMind download: openneuro_metadata.csv beside the folder OpenMind (Wald et al., ICCV 2025)."""

from __future__ import annotations

import os
from os.path import dirname, isdir, isfile, join

import pandas as pd

from nnunet_ssl.corpus.reader import ending_of
from nnunet_ssl.corpus.sources.csv_table import check_rows, read_rows, rename_columns, resolve_paths
from nnunet_ssl.corpus.sources.found import Found
from nnunet_ssl.errors import CorpusError

METADATA = "openneuro_metadata.csv"
REQUIRED = ("image_path", "modality")


def find_in_openmind(source: str) -> Found:
    """The images of an OpenMind download, partial ones too if the rest is to be left out as mistakes.

    `source` is the folder with openneuro_metadata.csv, or that file. Paths in it are relative to the folder OpenMind and
    begin with data set and subject. Its image quality score (1 is best, 5 worst) becomes the column `iqs`. Raises CorpusError.
    """
    csv = source if isfile(source) else join(source, METADATA)
    folder = join(dirname(os.path.abspath(csv)), "OpenMind")
    if not isfile(csv):
        raise CorpusError(f"There is no {csv}. It is part of the OpenMind download, beside the folder OpenMind.")
    table, mistakes = read_rows(csv)
    missing = [column for column in REQUIRED if column not in table]
    if missing:
        raise CorpusError(f"{csv} has no column {', '.join(missing)}. It has: {', '.join(map(str, table.columns))}.")
    if not isdir(folder):
        raise CorpusError(f"There is no folder {folder}: the images of {METADATA} lie there.")
    parts = table["image_path"].astype(str).str.split("/")
    table = rename_columns(table.drop(columns=["dataset_id", "subject_id"], errors="ignore"), csv)
    table["dataset"] = parts.str[0]
    table["subject"] = parts.str[1]
    third = parts.str[2]
    table["session"] = third.where(third.str.startswith("ses-", na=False), "ses-DEFAULT")
    table["name"] = _names(table)
    return check_rows(resolve_paths(table, folder), mistakes)


def _names(table: pd.DataFrame) -> list[str]:
    """data set__file; images made from others (DWI maps) lie one folder deeper, whose name is part of theirs."""
    derived = table["derived_from"].notna() if "derived_from" in table else pd.Series(False, index=table.index)
    names = []
    for path, is_derived in zip(table["path"].astype(str), derived, strict=True):
        parts = path[: -len(ending_of(path) or "")].split("/")
        kept = parts[-2:] if is_derived else parts[-1:]
        # Files below <data set>/<subject>/<session> need not repeat who and when.
        lead = [p for p in parts[1:3] if p.startswith(("sub-", "ses-")) and not any(p in k for k in kept)]
        names.append("__".join([parts[0], "_".join([*lead, *kept])]))
    return names
