"""nnU-Net's folders, from its environment variables."""

from __future__ import annotations

import os
import shlex
from os.path import isdir, join

from nnunet_ssl.corpus.dataset_names import datasets_in, named
from nnunet_ssl.errors import CorpusError


def require_folder(variable: str) -> str:
    """The value of one of nnU-Net's environment variables; raises CorpusError saying what to export."""
    value = os.environ.get(variable)
    if not value:
        raise CorpusError(
            f"The environment variable {variable} is not set; nnU-Net keeps its data there. Type e.g.\n"
            f"  export {variable}=/path/to/{variable}"
        )
    advice = how_to_spell(variable, value)
    if advice is not None:
        raise CorpusError(f"{variable}={value}: there is no such folder. {advice}")
    return value


def how_to_spell(variable: str, value: str) -> str | None:
    """What to type where the value of a variable is no path as it stands: nobody takes away quotes or expands ~ in it.

    None for a folder that is there, and for what only has to be made.
    """
    if isdir(value):
        return None
    path, reasons = value.strip(), []
    if path != value:
        reasons.append("spaces at its ends")
    if path[:1] in ("'", '"', "\u201c", "\u2018") or path[-1:] in ("'", '"', "\u201d", "\u2019"):
        path = path.strip("'\"\u201c\u201d\u2018\u2019")
        reasons.append("quotes, which belong to it there")
    if path.startswith("~"):
        path = os.path.expanduser(path)
        reasons.append("~, which nobody expands there ($HOME in a shell does)")
    elif "$" in path:
        path = os.path.expandvars(path)
        reasons.append("a variable, which nobody expands there")
    if not reasons:
        return None
    return f"The value holds {' and '.join(reasons)}. Type\n  export {variable}={shlex.quote(path)}"


def raw_datasets() -> list[str]:
    """The names of the data sets in nnUNet_raw, such as Dataset004_Hippocampus."""
    return datasets_in(require_folder("nnUNet_raw"))


def find_raw_dataset(dataset: str | int) -> str | None:
    """The folder in nnUNet_raw of a data set's number or name, None when there is none; raises CorpusError for several."""
    found = named(dataset, raw_datasets())
    return None if found is None else join(require_folder("nnUNet_raw"), found)
