"""nnU-Net's folders, from its environment variables."""

from __future__ import annotations

import os
from os.path import join

from nnunet_ssl.corpus.dataset_names import datasets_in, named
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
    return datasets_in(require_folder("nnUNet_raw"))


def find_raw_dataset(dataset: str | int) -> str | None:
    """The folder in nnUNet_raw of a data set's number or name, None when there is none; raises CorpusError for several."""
    found = named(dataset, raw_datasets())
    return None if found is None else join(require_folder("nnUNet_raw"), found)
