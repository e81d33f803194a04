"""Train folds one after the other with nnU-Net's own training; each continues where it stopped, and is trained once."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from os.path import isfile, join
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.run.run_training import find_free_network_port, run_ddp, run_training
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch.multiprocessing.spawn import spawn

from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.errors import BadFile, MachineError, SettingsError
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.integration.class_lookup import find_registered, names_of
from nnunet_ssl.methods import TRAINERS
from nnunet_ssl.nearest import did_you_mean
from nnunet_ssl.signals import children_hold_back
from nnunet_ssl.trainers.device.devices import require_device, use_threads
from nnunet_ssl.trainers.launch import (
    end_quietly_on_signals,
    is_finished,
    pass_signals_on,
    telling_the_parent,
    wait_for,
)
from nnunet_ssl.trainers.loop.state import existing_checkpoint
from nnunet_ssl.trainers.loop.validation import summary_file
from nnunet_ssl.trainers.ssl_trainer import SSLTrainer


@dataclass(frozen=True)
class Finetuning:
    """What is trained, in nnU-Net's words. weights: whatever -pretrained_weights takes, None for training from scratch."""

    dataset: str
    configuration: str
    trainer: str
    plans: str
    weights: str | None
    device: str

    def folder(self, fold: str) -> str:
        """nnU-Net's result folder of a fold."""
        model = f"{self.trainer}__{self.plans}__{self.configuration}"
        return join(nnUNet_results, self.dataset, model, f"fold_{fold}")


def require_trainer(name: str) -> None:
    """Raise SettingsError for the name of a trainer that there is not, or that pre-trains."""
    ours = names_of(TRAINERS)
    if name in ours:
        if issubclass(find_registered(TRAINERS, name), SSLTrainer):
            raise SettingsError(f"-tr {name} pre-trains, and this command fine-tunes. To pre-train: nnUNetv2_pretrain.")
        return
    try:
        with redirect_stdout(None), redirect_stderr(None):  # where else it looks is of no interest
            recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        tuning = [other for other in ours if "Finetune" in other or "Scratch" in other]
        raise SettingsError(
            f"There is no trainer {name}.{did_you_mean(name, tuning)} For fine-tuning: {', '.join(tuning)}.", found=name
        ) from error


def train_folds(job: Finetuning, folds: Sequence[str], num_gpus: int = 1) -> None:
    """Train and validate the folds that are not finished. Raises MachineError for devices that are not there."""
    require_device(torch.device(job.device))
    if num_gpus > 1 and (job.device != "cuda" or num_gpus > torch.cuda.device_count()):
        raise MachineError(
            f"{num_gpus} GPUs were asked for, this machine has {torch.cuda.device_count()}. nnU-Net trains on several "
            "processes with -device cuda alone. Leave out --num-gpus."
        )
    for fold in folds:
        folder = job.folder(fold)
        if is_finished(folder, None):
            print(f"Fold {fold} is finished: {folder}")
            continue
        goes_on = existing_checkpoint(folder) is not None
        print(f"\nFold {fold} {'goes on' if goes_on else 'begins'}: {folder}", flush=True)
        train_fold(job, fold, goes_on, num_gpus)


def train_fold(job: Finetuning, fold: str, goes_on: bool, num_gpus: int) -> None:
    """One fold by nnU-Net's own function; several processes are waited for as a pre-training's are, signals and all."""
    number: Any = fold if fold == "all" else int(fold)
    weights = None if goes_on else job.weights
    if num_gpus == 1:
        use_threads(torch.device(job.device))
        run_training(
            job.dataset,
            job.configuration,
            number,
            job.trainer,
            job.plans,
            weights,
            continue_training=goes_on,
            device=torch.device(job.device),
        )
        return
    os.environ["MASTER_ADDR"] = "localhost"
    os.environ["MASTER_PORT"] = str(find_free_network_port())
    places = (job.dataset, job.configuration, number, job.trainer, job.plans)
    flags = (False, goes_on, False, weights, False, False, num_gpus)
    with children_hold_back():
        context = spawn(run_ddp_obeying, args=(*places, *flags), nprocs=num_gpus, join=False)
    with pass_signals_on(context) as received:
        wait_for(context, received)


def run_ddp_obeying(rank: int, *arguments: Any) -> None:
    """nnU-Net's process of several, which lets signals through that its parent held back while it began."""
    end_quietly_on_signals()
    with telling_the_parent():
        run_ddp(rank, *arguments)


def next_commands(job: Finetuning, folds: Sequence[str]) -> str:
    """How good the folds are, and what to type to predict with all of this model's that are finished."""
    known = [*dict.fromkeys([*map(str, range(5)), *folds])]
    finished = [fold for fold in known if is_finished(job.folder(fold), None)]
    scores = [f"  fold {fold}: {dice(job.folder(fold))}   {job.folder(fold)}" for fold in finished]
    command = ["nnUNetv2_predict", "-i", "INPUT_FOLDER", "-o", "OUTPUT_FOLDER", "-d", str(dataset_id(job.dataset))]
    command += ["-c", job.configuration, "-tr", job.trainer, "-p", job.plans, "-f", *finished]
    command += ["-device", job.device] if job.device != "cuda" else []
    return "\n".join(["\nMean Dice of the held-out cases:", *scores, "Predict:", f"  {shlex.join(command)}"])


def dice(folder: str) -> str:
    """The mean Dice of a fold's validation over all classes, as text."""
    path = summary_file(folder)
    try:
        return f"{read_json(path)['foreground_mean']['Dice']:.4f}" if isfile(path) else "not validated"
    except (BadFile, KeyError, TypeError, ValueError):
        return f"see {path}"
