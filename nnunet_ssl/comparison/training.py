"""Train and test one cell by nnU-Net's own training, in folders of its own, from which the same commands work by hand.

The cell's `training/preprocessed` links to the user's preprocessed images and has its own plans (the arm's, with the comparison's
schedule and the cell's seed in their `finetune` block) and its own splits (the data set's, with the cell's training cases in its
fold). nnU-Net's final validation predicts the fold's held-out cases and scores them.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from copy import deepcopy
from os.path import islink, join
from pathlib import Path
from typing import Any

import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.comparison.cells import TRAINING, Cell
from nnunet_ssl.comparison.description import Description
from nnunet_ssl.comparison.preparing import Prepared
from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.corpus.splits import FILE as SPLITS
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.files.atomic import copy_file, write_json
from nnunet_ssl.planners.sharing.labels import FOLDER as LABELS
from nnunet_ssl.settings.blocks import FinetuneSettings, read_config
from nnunet_ssl.trainers.data.corpus import derive_seed, seed_everything
from nnunet_ssl.trainers.device.devices import use_threads
from nnunet_ssl.trainers.finetune_folds import Finetuning, train_folds
from nnunet_ssl.trainers.finetuning import SSLFinetuneTrainer
from nnunet_ssl.trainers.launch import is_finished
from nnunet_ssl.trainers.loop.state import existing_checkpoint

TRAIN_PER_VALIDATION = 5  # iterations of nnU-Net: 250 to train, 50 to watch the pseudo Dice


def environment(cell_folder: Path) -> dict[str, str]:
    """The variables under which nnU-Net works in the cell's folders."""
    training = cell_folder / TRAINING
    return {"nnUNet_preprocessed": str(training / "preprocessed"), "nnUNet_results": str(training / "results")}


def reads_settings(name: str) -> bool:
    """Whether a trainer (ours, nnU-Net's, another package's) reads schedule and seed from the plans' `finetune` block."""
    return issubclass(recursive_find_trainer_class_by_name(name), SSLFinetuneTrainer)


def highest_lr(job: Finetuning, plans: Mapping[str, Any], logged: Sequence[float]) -> float | None:
    """The highest learning rate of a training's schedule; of other trainers that of the `logged` ones."""
    if not reads_settings(job.trainer):
        return max(logged, default=None)
    manager = PlansManager(dict(plans)).get_configuration(job.configuration)
    settings = read_config(FinetuneSettings, manager.configuration.get("finetune", {}), "the finetune block")
    trainer: type[SSLFinetuneTrainer] = recursive_find_trainer_class_by_name(job.trainer)
    return trainer.recipe_of(manager, settings).initial_lr


def plans_of(cell: Cell, prepared: Prepared, description: Description) -> dict[str, Any]:
    """The arm's plans with the comparison's schedule and the cell's seed.

    No early stop: what is watched during the training are the cases that are tested on.
    """
    plans = deepcopy(prepared.plans[cell.arm.name])
    configuration = plans["configurations"][prepared.configuration]
    block = {k: v for k, v in configuration.get("finetune", {}).items() if k != "early_stop"}
    block["seed"] = cell.seed
    if description.epochs is not None:
        block["num_epochs"] = description.epochs
        warmup = block.get("warmup_epochs")
        if warmup is not None and warmup >= description.epochs:
            del block["warmup_epochs"]  # of a longer schedule; the trainer's own rule fits any length
    if description.iterations_per_epoch is not None:
        block["num_iterations_per_epoch"] = description.iterations_per_epoch
        block["num_val_iterations_per_epoch"] = max(1, description.iterations_per_epoch // TRAIN_PER_VALIDATION)
    configuration["finetune"] = block
    if description.batch_size is not None:
        configuration["batch_size"] = description.batch_size
    return plans


def write_workspace(cell: Cell, prepared: Prepared, description: Description, folder: Path) -> dict[str, Any]:
    """Make the cell's own nnUNet_preprocessed; returns its plans."""
    base = Path(environment(folder)["nnUNet_preprocessed"], cell.entry.dataset)
    base.mkdir(parents=True, exist_ok=True)
    Path(environment(folder)["nnUNet_results"]).mkdir(exist_ok=True)
    plans = plans_of(cell, prepared, description)
    for name in (plans["configurations"][prepared.configuration]["data_identifier"], LABELS):
        link = base / name
        if islink(link) and os.readlink(link) != join(prepared.base, name):
            link.unlink()
        if not islink(link):
            link.symlink_to(join(prepared.base, name), target_is_directory=True)
    fingerprint = Path(prepared.base, "dataset_fingerprint.json")
    if fingerprint.is_file():
        copy_file(fingerprint, base / fingerprint.name)
    splits = [dict(split) for split in prepared.splits]
    splits[cell.fold] = {
        "train": prepared.training_cases(cell.labelled, cell.fold, cell.seed),
        "val": prepared.splits[cell.fold]["val"],
    }
    write_json(splits, base / SPLITS)
    write_json(prepared.dataset_json, base / "dataset.json")
    write_json(plans, base / f"{plans['plans_name']}.json")
    return plans


def job_of(cell: Cell, plans: Mapping[str, Any], device: str) -> Finetuning:
    """The cell in nnU-Net's words."""
    return Finetuning(
        cell.entry.dataset, cell.entry.configuration, cell.arm.trainer, plans["plans_name"], cell.arm.weights, device
    )


def train_cell(cell: Cell, job: Finetuning, description: Description, num_gpus: int) -> None:
    """Train, and predict and score the held-out cases; goes on where it stopped. nnU-Net's folders are the cell's own."""
    if reads_settings(job.trainer):
        train_folds(job, [str(cell.fold)], num_gpus)
        return
    if num_gpus > 1:
        raise SettingsError(f"{job.trainer} is given its schedule in one process. Leave out --num-gpus.")
    _train_other(cell, job, description)


def _train_other(cell: Cell, job: Finetuning, description: Description) -> None:
    """nnU-Net's `run_training` for trainers that know no settings: the schedule is set on the trainer, as in a subclass of it."""
    folder = job.folder(str(cell.fold))
    if is_finished(folder, None):
        return
    goes_on, device = existing_checkpoint(folder) is not None, torch.device(job.device)
    use_threads(device)
    seed_everything(derive_seed(cell.seed))
    trainer = get_trainer_from_args(
        job.dataset, job.configuration, cell.fold, job.trainer, job.plans, goes_on, device=device
    )
    if description.epochs is not None:
        trainer.num_epochs = description.epochs
    if description.iterations_per_epoch is not None:
        trainer.num_iterations_per_epoch = description.iterations_per_epoch
        trainer.num_val_iterations_per_epoch = max(1, description.iterations_per_epoch // TRAIN_PER_VALIDATION)
    maybe_load_checkpoint(trainer, goes_on, False, None if goes_on else job.weights)
    trainer.run_training()
    trainer.perform_actual_validation()


def warnings_about(trainer: str) -> list[str]:
    """What a trainer without settings means for the comparison."""
    if reads_settings(trainer):
        return []
    return [
        f"{trainer} reads no settings from plans: length and iterations were set on it as attributes, its own learning rate and "
        "schedule stayed, the seed fixed its first weights, and its loader draws batches as it likes."
    ]


def commands_of(cell: Cell, job: Finetuning, comparison: Path) -> list[str]:
    """What to type to repeat a cell by hand, with `--keep models`; other trainers' cells are repeated by the comparison alone."""
    folder = cell.folder(comparison)
    if not reads_settings(job.trainer):
        return [shlex.join(["nnUNetv2_pretrain_compare", "-o", str(comparison), "--run", str(cell.number)])]
    exports = [f"export {variable}={shlex.quote(value)}" for variable, value in environment(folder).items()]
    train = ["nnUNetv2_train", str(dataset_id(job.dataset)), job.configuration, str(cell.fold), "-tr", job.trainer]
    train += ["-p", job.plans, *(["-pretrained_weights", job.weights] if job.weights else [])]
    train += ["-device", job.device] if job.device != "cuda" else []
    return [*exports, shlex.join(train)]


def validation_folder(job: Finetuning, fold: int) -> Path:
    """Where nnU-Net leaves predictions and their summary.json."""
    return Path(job.folder(str(fold)), "validation")
