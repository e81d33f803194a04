"""Datasets and plans by what the user typed, with errors that list what there is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from os.path import isdir, isfile, join
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.corpus.errors import CorpusError
from nnunet_ssl.corpus.folders import require_folder
from nnunet_ssl.corpus.images import list_images, read_dataset_json


def resolve_datasets(datasets: Iterable[str | int]) -> list[str]:
    """Folder names such as Dataset004_Hippocampus for ids or names; raises CorpusError listing the datasets there are."""
    require_folder("nnUNet_preprocessed")
    names = [_resolve(str(dataset)) for dataset in datasets]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise CorpusError(f"{', '.join(sorted(twice))} is named twice. Name every dataset once.")
    if not names:
        raise CorpusError("No dataset is named. Example: nnUNetv2_pretrain 4")
    return names


def dataset_id(name: str) -> int:
    """4 for Dataset004_Hippocampus."""
    return int(name[7:10])


def raw_images(name: str) -> dict[str, dict[str, Any]] | None:
    """The cases of a raw dataset, None when there is no raw dataset of that name."""
    folder = raw_folder(name)
    return None if folder is None else list_images(folder, read_dataset_json(folder))


def raw_folder(name: str) -> str | None:
    """The folder of a raw dataset if it is there."""
    return join(nnUNet_raw, name) if nnUNet_raw.is_set() and isdir(join(nnUNet_raw, name)) else None


def require_raw(name: str, purpose: str) -> str:
    """The folder of a raw dataset; raises CorpusError saying what it is needed for."""
    folder = raw_folder(name)
    if folder is None:
        require_folder("nnUNet_raw")
        raise CorpusError(f"There is no {join(nnUNet_raw, name)}, which is needed for {purpose} of {name}.")
    return folder


def plans_file(name: str, plans_name: str) -> str:
    """Where the plans of a dataset are, or would be."""
    return join(nnUNet_preprocessed, name, f"{plans_name}.json")


def load_plans(name: str, plans_name: str) -> dict[str, Any]:
    """Existing plans; raises CorpusError listing those there are."""
    path = plans_file(name, plans_name)
    if not isfile(path):
        folder = join(nnUNet_preprocessed, name)
        files = sorted(os.listdir(folder)) if isdir(folder) else []
        present = [f.removesuffix(".json") for f in files if f.endswith(".json") and "Plans" in f]
        raise CorpusError(
            f"{name} has no plans {plans_name}. It has: {', '.join(present) or 'none'}. Make plans with "
            f"nnUNetv2_plan_experiment -d {dataset_id(name)} -pl <planner>, or leave the choice to "
            f"nnUNetv2_pretrain {dataset_id(name)} --backbone resenc_l"
        )
    return load_json(path)


def load_configuration(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """A configuration of plans with what it inherits; raises CorpusError listing those there are."""
    if configuration not in plans["configurations"]:
        raise CorpusError(
            f"{plans['plans_name']} of {plans['dataset_name']} has no configuration {configuration}. It has: "
            f"{', '.join(plans['configurations'])}. Choose one with -c."
        )
    return PlansManager(plans).get_configuration(configuration).configuration


def _resolve(dataset: str) -> str:
    present = _present()
    everything = sorted(set().union(*present.values()))
    if dataset in everything:
        return dataset
    found = [n for n in everything if dataset.isdigit() and dataset_id(n) == int(dataset)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CorpusError(f"Dataset {dataset} is ambiguous: {', '.join(found)}. Give the whole name, or rename one.")
    if not nnUNet_raw.is_set():
        require_folder("nnUNet_raw")
    lines = [f"  {where} ({path(where)}): {listed(names)}" for where, names in present.items()]
    raise CorpusError(
        f"There is no dataset {dataset}. Known datasets:\n" + "\n".join(lines) + "\nGive the number or the whole name."
    )


def _present() -> dict[str, list[str]]:
    return {where: _datasets_in(path(where)) for where in ("nnUNet_raw", "nnUNet_preprocessed")}


def path(variable: str) -> str:
    """The folder behind one of nnU-Net's variables, or a note that it is not set."""
    return os.environ.get(variable) or "not set"


def listed(names: Sequence[str]) -> str:
    """Names on one line."""
    return ", ".join(names) or "none"


def _datasets_in(folder: str) -> list[str]:
    names = os.listdir(folder) if isdir(folder) else []
    return sorted(n for n in names if n.startswith("Dataset") and n[7:10].isdigit() and isdir(join(folder, n)))
