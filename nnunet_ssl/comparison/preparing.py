"""What all cells of a data set need: the plans of every arm, preprocessed images, the folds. Written down once per data set.

The user's folders are used as nnUNetv2_finetune uses them: plans with names of their own and preprocessed images are added,
nothing is changed. What a comparison decided lies in its own folder, `datasets/NAME.json`, and holds for every later start.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import isdir, join
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

from nnunet_ssl.comparison.description import DatasetEntry, Description
from nnunet_ssl.comparison.seen import seen_in_pretraining
from nnunet_ssl.comparison.subsets import Split, labelled_subset, require_folds
from nnunet_ssl.corpus.datasets import raw_folder
from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.corpus.splits import FILE as SPLITS
from nnunet_ssl.corpus.splits import require_splits
from nnunet_ssl.corpus.subjects import subjects_of
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.files.locks import Lock
from nnunet_ssl.planners.finetuning.existing_plans import use_plans
from nnunet_ssl.planners.finetuning.finetune_plans import Wishes
from nnunet_ssl.planners.finetuning.plan_finetune import Planned, plan_finetuning
from nnunet_ssl.planners.folds import FOLDS, make_folds
from nnunet_ssl.planners.sharing.labels import FOLDER as LABELS

FOLDER = "datasets"
# Entries of a configuration, and of its finetune block, that say nothing about fairness, or are set for all cells.
NOT_COMPARED = ("finetune", "ssl", "data_identifier", "preprocessor_name", "storage_dtype")
SET_FOR_ALL = (
    "num_epochs",
    "num_iterations_per_epoch",
    "num_val_iterations_per_epoch",
    "seed",
    "save_every",
    "early_stop",
)
OF_WEIGHTS = ("transfer", "channels", "stem")


@dataclass(frozen=True)
class Prepared:
    """What was decided for a data set. plans: by arm. warnings: by arm, for people. images: files by case."""

    dataset: str
    configuration: str
    base: str  # its folder in nnUNet_preprocessed
    dataset_json: dict[str, Any]
    splits: list[Split]
    subjects: dict[str, str]
    images: dict[str, list[str]]
    plans: dict[str, dict[str, Any]]
    warnings: dict[str, list[str]]

    @property
    def truth(self) -> Path:
        """The folder of label files."""
        return Path(self.base, LABELS)

    def training_cases(self, labelled: int | str, fold: int, seed: int) -> list[str]:
        """What a cell trains on."""
        return labelled_subset(self.splits[fold]["train"], labelled, self.dataset, fold, seed, self.subjects)

    def configuration_of(self, arm: str) -> dict[str, Any]:
        """The arm's entry in its plans."""
        return self.plans[arm]["configurations"][self.configuration]


def prepare(entry: DatasetEntry, description: Description, comparison: Path, num_processes: int) -> Prepared:
    """Plan and preprocess what is missing, or read what an earlier start decided. Raises CorpusError and CheckpointError.

    Any number of processes may call it at once: one works, the others wait for it.
    """
    path = comparison / FOLDER / f"{entry.dataset}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with Lock(path.with_suffix(".lock"), f"preparing {entry.dataset}").waiting():
        there = Prepared(**read_json(path)) if path.is_file() else None
        if there is None or set(there.plans) != {a.name for a in description.arms} or not _images_are_there(there):
            known = there.plans if there is not None and _images_are_there(there) else {}
            plans = _plan_arms(entry, description, known, num_processes)
            there = _decide(entry, description, plans, there)
            write_json(vars(there), path)
    _require_cases(there, description)
    return there


def read_prepared(dataset: str, comparison: Path) -> Prepared:
    """What `prepare` decided; raises CorpusError before it did."""
    path = comparison / FOLDER / f"{dataset}.json"
    if not path.is_file():
        start = shlex.join(["nnUNetv2_pretrain_compare", "-o", str(comparison)])
        raise CorpusError(f"There is no {path}. To have it made: {start}")
    return Prepared(**read_json(path))


def _images_are_there(prepared: Prepared) -> bool:
    folders = {prepared.configuration_of(arm)["data_identifier"] for arm in prepared.plans}
    return all(isdir(join(prepared.base, folder)) for folder in folders)


def _plan_arms(
    entry: DatasetEntry, description: Description, known: Mapping[str, dict[str, Any]], num_processes: int
) -> dict[str, dict[str, Any]]:
    """The plans of every arm, those that are `known` as they are; arms that take them from another one come last."""
    plans = dict(known)
    for arm in sorted(description.arms, key=lambda a: a.plans is None and a.weights is None):
        if arm.name in plans:
            continue
        print(f"\n{entry.dataset}, {arm.name}: plans and images", flush=True)
        if arm.plans is not None:
            wishes = Wishes(batch_size=description.batch_size)
            planned = use_plans(entry.dataset, arm.plans, entry.configuration, wishes, num_processes)
        elif arm.weights is not None:
            wishes = Wishes(adapt=arm.adapt, batch_size=description.batch_size)
            planned = plan_finetuning(entry.dataset, arm.weights, wishes, num_processes=num_processes, keep=True)
        else:
            source = arm.like or next(a.name for a in description.arms if a.weights is not None)
            planned = Planned(plans[source], entry.configuration, ())
            print(f"Those of {source}.")
        plans[arm.name], found = planned.plans, planned.configuration
        if found != entry.configuration:
            raise CorpusError(
                f"{entry.dataset}, {arm.name}: the network is one for {found}, the comparison is about "
                f"{entry.configuration}. Type -c {found}."
            )
    return {arm.name: plans[arm.name] for arm in description.arms}


def _decide(
    entry: DatasetEntry, description: Description, plans: dict[str, dict[str, Any]], before: Prepared | None
) -> Prepared:
    """Folds, subjects and warnings for planned arms; the folds of an earlier start stay."""
    name, base = entry.dataset, join(nnUNet_preprocessed, entry.dataset)
    raw = raw_folder(name)
    dataset_json = read_json(join(base, "dataset.json"))
    ending = dataset_json["file_ending"]
    labelled = sorted(file.name.removesuffix(ending) for file in Path(base, LABELS).glob(f"*{ending}"))
    subjects = subjects_of(raw, labelled, name)
    splits = before.splits if before is not None else _splits(base, subjects)
    require_folds(name, splits, description.folds)
    images = {}
    if raw is not None:
        images = {case: files["images"] for case, files in list_images(raw, read_dataset_json(raw)).items()}
    held_out = {case for fold in description.folds for case in splits[fold]["val"]}
    warnings = {
        arm.name: [
            *_unlike(plans, arm.name, description.reference.name, entry.configuration),
            *([] if arm.weights is None else seen_in_pretraining(arm.weights, name, held_out, subjects, images)),
        ]
        for arm in description.arms
    }
    decided = {
        "dataset": name,
        "configuration": entry.configuration,
        "base": base,
        "dataset_json": dataset_json,
        "splits": splits,
        "subjects": subjects,
        "images": {case: images[case] for case in sorted(images) if case in subjects},
        "plans": plans,
        "warnings": warnings,
    }
    return Prepared(**json.loads(json.dumps(decided)))


def _splits(base: str, subjects: Mapping[str, str]) -> list[Split]:
    """The data set's own folds, or those nnU-Net would make, of labelled cases alone."""
    path = join(base, SPLITS)
    require_splits(path)
    if Path(path).is_file():
        own = read_json(path)
        return [{side: sorted(c for c in fold[side] if c in subjects) for side in ("train", "val")} for fold in own]
    people = len(set(subjects.values()))
    return make_folds(subjects, min(FOLDS, people)) if people > 1 else []


def _require_cases(prepared: Prepared, description: Description) -> None:
    """Raise CorpusError for numbers of labelled cases that a fold does not have."""
    for fold in description.folds:
        for labelled in description.labelled:
            prepared.training_cases(labelled, fold, description.seeds[0])


def _unlike(plans: Mapping[str, Mapping[str, Any]], arm: str, reference: str, configuration: str) -> list[str]:
    """How an arm's plans differ from the reference's, in what they train with and how images are presented."""
    one, other = (
        {k: v for k, v in plans[a]["configurations"][configuration].items() if k not in NOT_COMPARED}
        for a in (reference, arm)
    )
    unlike = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
    blocks = [dict(plans[a]["configurations"][configuration].get("finetune", {})) for a in (reference, arm)]
    unlike += [
        f"finetune {key}"
        for key in sorted({*blocks[0], *blocks[1]})
        if key not in (*SET_FOR_ALL, *OF_WEIGHTS) and blocks[0].get(key) != blocks[1].get(key)
    ]
    if not unlike:
        return []
    return [f"The plans of {arm} differ from those of {reference}: {', '.join(unlike)}."]
