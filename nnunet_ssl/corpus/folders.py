"""nnU-Net's folders, from its environment variables."""

from __future__ import annotations

import os
from os.path import isdir, join

from nnunet_ssl.corpus.errors import CorpusError


def require_folder(variable: str) -> str:
    """The value of one of nnU-Net's environment variables; raises CorpusError saying what to export."""
    value = os.environ.get(variable)
    if not value:
        raise CorpusError(
            f"The environment variable {variable} is not set; nnU-Net keeps its data there. Type e.g.\n"
            f"  export {variable}=/path/to/{variable}"
        )
    return value


def raw_datasets() -> list[str]:
    """The names of the data sets in nnUNet_raw, such as Dataset004_Hippocampus."""
    raw = require_folder("nnUNet_raw")
    names = os.listdir(raw) if isdir(raw) else []
    return sorted(n for n in names if n.startswith("Dataset") and n[7:10].isdigit() and isdir(join(raw, n)))


def find_raw_dataset(dataset: str | int) -> str | None:
    """The folder in nnUNet_raw of a data set's number or name, None when there is none; raises CorpusError for several."""
    wanted = str(dataset)
    found = [n for n in raw_datasets() if n == wanted or (wanted.isdigit() and int(n[7:10]) == int(wanted))]
    if len(found) > 1:
        raise CorpusError(f"Dataset {dataset} is ambiguous: {', '.join(found)}. Give the whole name, or rename one.")
    return join(require_folder("nnUNet_raw"), found[0]) if found else None
