"""Datasets and plans by what the user typed, with errors that list what there is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from os.path import isdir, isfile, join
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.corpus.dataset_names import dataset_id, datasets_in, named
from nnunet_ssl.corpus.folders import require_folder
from nnunet_ssl.corpus.names import reason_against_file
from nnunet_ssl.errors import BadFile, CorpusError
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.nearest import did_you_mean


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
            f"nnUNetv2_plan_experiment -d {dataset_id(name)} -pl PLANNER, or leave the choice to "
            f"nnUNetv2_pretrain {dataset_id(name)} --backbone resenc_l"
        )
    try:
        plans = read_json(path)
    except BadFile as error:
        raise CorpusError(f"{error}. Remove it to have the plans made anew.") from error
    return require_own_plans(plans, path, name)


def require_own_plans(plans: Any, path: str, name: str) -> dict[str, Any]:
    """Plans as read from `path`, if they are such, of the data set `name`; raises CorpusError saying what to edit."""
    configurations = plans.get("configurations") if isinstance(plans, dict) else None
    if not isinstance(configurations, dict):
        raise CorpusError(f"{path} holds no plans of nnU-Net. Remove it to have them made anew.")
    if plans.get("dataset_name") != name:
        raise CorpusError(
            f"{path} was made for {plans.get('dataset_name')!r}, not for {name}: a training would work on that data set. If "
            f'a folder was renamed or copied, correct it: "dataset_name": "{name}". Or remove the folder to start anew.'
        )
    identifiers = {c: v.get("data_identifier") for c, v in configurations.items() if isinstance(v, dict)}
    names = {"plans_name": plans.get("plans_name"), **{c: i for c, i in identifiers.items() if i is not None}}
    bad = [f"{what} {text!r} {reason}" for what, text in names.items() if (reason := reason_against_file(text))]
    if bad:
        raise CorpusError(f"{path} names files that cannot be called so: {'; '.join(bad)}.")
    return plans


def load_configuration(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """A configuration of plans with what it inherits; raises CorpusError listing those there are."""
    if configuration not in plans["configurations"]:
        raise CorpusError(
            f"{plans['plans_name']} of {plans['dataset_name']} has no configuration {configuration}. It has: "
            f"{', '.join(plans['configurations'])}. Choose one with -c."
        )
    try:
        return PlansManager(plans).get_configuration(configuration).configuration
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CorpusError(
            f"The configuration {configuration} of the plans {plans.get('plans_name')} is none of nnU-Net's "
            f"({type(error).__name__}: {error}). Undo the change, or plan anew."
        ) from error


def _resolve(dataset: str) -> str:
    present = _present()
    found = named(dataset, sorted(set().union(*present.values())))
    if found is not None:
        return found
    if not nnUNet_raw.is_set():
        require_folder("nnUNet_raw")
    lines = [f"  {where} ({path(where)}): {listed(names)}" for where, names in present.items()]
    near = did_you_mean(dataset, sorted(set().union(*present.values())))
    raise CorpusError(
        f"There is no dataset {dataset}.{near} Known datasets:\n"
        + "\n".join(lines)
        + "\nGive the number or the whole name."
    )


def _present() -> dict[str, list[str]]:
    return {where: datasets_in(path(where)) for where in ("nnUNet_raw", "nnUNet_preprocessed")}


def path(variable: str) -> str:
    """The folder behind one of nnU-Net's variables, or a note that it is not set."""
    return os.environ.get(variable) or "not set"


def listed(names: Sequence[str]) -> str:
    """Names on one line."""
    return ", ".join(names) or "none"
