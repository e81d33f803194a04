"""Fine-tuning with plans that are there, such as those of the pre-training: only what is missing is prepared."""

from __future__ import annotations

import os
from copy import deepcopy
from os.path import isdir, isfile, join
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

from nnunet_ssl.corpus.datasets import load_configuration, load_plans, plans_file, raw_folder, resolve_datasets
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.planners.finetuning.finetune_plans import Wishes
from nnunet_ssl.planners.finetuning.plan_finetune import Planned, folds_for, require_labels
from nnunet_ssl.planners.prepare import prepare_corpus
from nnunet_ssl.planners.sharing.follow import planning_lock
from nnunet_ssl.planners.sharing.labels import FOLDER as LABELS


def use_plans(dataset: str | int, plans_name: str, configuration: str, wishes: Wishes, num_processes: int) -> Planned:
    """Preprocess what is missing for existing plans; another length or batch is written into a copy of them.

    Raises CorpusError where there are no such plans, or no labels.
    """
    (name,) = resolve_datasets([dataset])
    wishes.require_positive()
    if raw_folder(name) is not None:
        require_labels(name)
    plans = load_plans(name, plans_name)
    load_configuration(plans, configuration)
    if wishes.short():
        plans_name = write_variant(plans, configuration, wishes)
    plans, _ = prepare_corpus(
        [name], None, plans_name=plans_name, configuration=configuration, num_processes=num_processes
    )
    labelled = count_labels(name)
    if not labelled:
        raise CorpusError(
            f"{name} has no labels in {join(nnUNet_preprocessed, name, LABELS)}, and fine-tuning learns from labels. Put them "
            "into labelsTr of the raw data set and type the same command again."
        )
    return Planned(plans, configuration, folds_for(name, labelled))


def write_variant(plans: dict[str, Any], configuration: str, wishes: Wishes) -> str:
    """Write a copy of plans with another length or batch beside them, unless it is there; returns its name.

    It uses the same preprocessed images.
    """
    dataset, name = plans["dataset_name"], "_".join([plans["plans_name"], *wishes.short()])
    path = plans_file(dataset, name)
    with planning_lock(dataset).waiting():
        if isfile(path):
            print(f"{dataset}: using the plans {name} that are there.")
            return name
        copy = deepcopy({**plans, "plans_name": name})
        entries = load_configuration(plans, configuration)
        own = copy["configurations"][configuration]
        own["finetune"] = {**entries.get("finetune", {}), **wishes.schedule()}
        if wishes.batch_size is not None:
            own["batch_size"] = wishes.batch_size
        write_json(copy, path)
    print(f"{dataset}: new plans {name}, those of {plans['plans_name']} otherwise: {path}")
    return name


def count_labels(name: str) -> int:
    """How many segmentations preprocessing has found in a data set."""
    folder = join(nnUNet_preprocessed, name, LABELS)
    return sum(not file.startswith(".") for file in os.listdir(folder)) if isdir(folder) else 0
