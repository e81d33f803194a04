"""Names of data sets: Dataset004_Hippocampus is number 4, Dataset1234_Big is number 1234 (and 123 never means it)."""

from __future__ import annotations

import os
import re
from os.path import isdir, join

from nnunet_ssl.errors import CorpusError

# At least three digits, as nnU-Net writes them; no separator and no control character, for it becomes a folder's name.
_NAME = re.compile(r"Dataset(\d{3,})(?:_([^/\\\x00-\x1f\x7f]*))?")


def is_dataset_name(name: object) -> bool:
    """Whether a text is the name of a data set, and of nothing else."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def dataset_id(name: str) -> int:
    """4 for Dataset004_Hippocampus; raises CorpusError for what is no data set's name."""
    return int(_parts(name)[1])


def dataset_title(name: str) -> str:
    """Hippocampus for Dataset004_Hippocampus; raises CorpusError for what is no data set's name."""
    return _parts(name)[2] or ""


def dataset_name(number: int, title: str) -> str:
    """Dataset004_Hippocampus for 4 and Hippocampus."""
    return f"Dataset{number:03d}_{title}"


def datasets_in(folder: str) -> list[str]:
    """The data sets that have a folder in one of nnU-Net's; none where it is not there."""
    names = os.listdir(folder) if isdir(folder) else []
    return sorted(name for name in names if is_dataset_name(name) and isdir(join(folder, name)))


def named(dataset: str | int, names: list[str]) -> str | None:
    """Which of `names` a whole name or a number means, None for none; raises CorpusError where it means several."""
    wanted = str(dataset)
    if wanted in names:
        return wanted
    found = [name for name in names if wanted.isdecimal() and dataset_id(name) == int(wanted)]
    if len(found) > 1:
        raise CorpusError(f"Dataset {dataset} is ambiguous: {', '.join(found)}. Give the whole name, or rename one.")
    return found[0] if found else None


def _parts(name: str) -> re.Match[str]:
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise CorpusError(
            f"{name!r} is no data set's name. Expected e.g. Dataset004_Hippocampus: a number of 3 digits or more."
        )
    return parts
