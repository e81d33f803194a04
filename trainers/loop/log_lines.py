"""What the log of a pre-training says: a summary at its start, and a line per epoch. Epochs are counted from 1 in it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os.path import join
from statistics import median
from typing import Any

import torch
from torch import nn

from nnunet_ssl.corpus.check import shape_text
from nnunet_ssl.messages import counted
from nnunet_ssl.recipes import Recipe
from nnunet_ssl.trainers.context import RunContext, TrainingContext
from nnunet_ssl.trainers.device.precision import autocast_dtype
from nnunet_ssl.trainers.loop.judging import YARDSTICK
from nnunet_ssl.trainers.loop.progress import duration

ENOUGH = 0.2  # of an epoch's iterations, from which its length can be told


def summary(trainer: RunContext) -> str:
    """What is trained, on what, how, and where it is written: a few lines in place of nnU-Net's dump of all plans."""
    network, micro_batches = trainer.method.bare_network, trainer.settings.accumulate
    config = ", ".join(f"{key}={value!r}" for key, value in asdict(trainer.method_config).items())
    begun = f", goes on in epoch {trainer.current_epoch + 1}" if trainer.position.resumed else ""
    deterministic = ", deterministic algorithms, not compiled" if trainer.wants_determinism else ""
    precision = str(autocast_dtype(trainer.device) or torch.float32).removeprefix("torch.")
    return _lines(
        "Pre-training",
        {
            "data": _data(trainer, trainer.settings.datasets),
            "network": _network(trainer, network),
            "patches": f"{_patches(trainer, trainer.views.network_size)}; batch size {trainer.total_batch_size}"
            f"{f' in {micro_batches} micro-batches per process' if micro_batches > 1 else ''}",
            "task": f"{trainer.method_name}: {config}",
            "recipe": _recipe(trainer.recipe),
            "length": f"{_length(trainer)}{begun}",
            "device": f"{trainer.device}, {precision}{deterministic}",
            "written to": trainer.output_folder,
            "settings": join(trainer.output_folder_base, "plans.json"),
            **command(sys.argv),
            "please cite": trainer.method.citation,
        },
    )


def finetuning_summary(trainer: TrainingContext, network: nn.Module) -> str:
    """The lines of `summary` for a fine-tuning."""
    return _lines(
        "Fine-tuning",
        {
            "data": _data(trainer),
            "network": _network(trainer, network),
            "patches": f"{_patches(trainer, trainer.configuration_manager.patch_size)}; batch size {trainer.batch_size}"
            f"{' per process' if trainer.is_ddp else ''}",
            "recipe": _recipe(trainer.recipe),
            "length": _length(trainer),
            "device": str(trainer.device),
            "written to": trainer.output_folder,
            "settings": join(trainer.output_folder_base, "plans.json"),
        },
    )


def command(argv: Sequence[str]) -> dict[str, str]:
    """The row that says what continues the run, for report.html too; empty where a launcher or a script has started it."""
    name = os.path.basename(argv[0])
    if not name.startswith("nnUNetv2_"):
        return {}
    asks = name == "nnUNetv2_train" and "--c" not in argv
    return {"command": shlex.join([name, *argv[1:], *(["--c"] if asks else [])])}


def _lines(title: str, rows: Mapping[str, object]) -> str:
    return "\n".join([title, *(f"  {key + ':':<13}{value}" for key, value in rows.items())])


def _data(trainer: TrainingContext, others: Sequence[str] = ()) -> str:
    plans = trainer.plans_manager
    names = " and ".join([plans.dataset_name, *others])
    return f"{names}, {trainer.configuration_name} of {plans.plans_name}, fold {trainer.fold}"


def _network(trainer: TrainingContext, network: nn.Module) -> str:
    size = sum(p.numel() for p in network.parameters()) / 1e6
    channels = counted(int(trainer.num_input_channels or 1), "input channel")
    return f"{type(network).__name__}, {size:.1f} million parameters, {channels}"


def _patches(trainer: TrainingContext, size: Sequence[int]) -> str:
    spacing = " x ".join(f"{s:.3g}" for s in trainer.configuration_manager.spacing)
    return f"{shape_text(size)} voxels of {spacing} mm"


def _recipe(recipe: Recipe) -> str:
    clipped = f"gradients clipped at {recipe.grad_clip:g}" if recipe.grad_clip else "gradients not clipped"
    return (
        f"{recipe.optimizer}, learning rate {recipe.initial_lr:g}, weight decay {recipe.weight_decay:g}, {clipped}; "
        f"from {recipe.source}"
    )


def _length(trainer: TrainingContext) -> str:
    warmup = trainer.recipe.warmup_epochs
    first = f", the first {warmup} as warm-up" if warmup > 1 else ", the first as warm-up" if warmup else ""
    iterations = counted(trainer.num_iterations_per_epoch, "iteration")
    return f"{counted(trainer.num_epochs, 'epoch')} of {iterations}{first}"


def epoch_line(log: Mapping[str, Any], epoch: int, num_epochs: int, share: float, before: list[float]) -> str:
    """One line about the epoch `epoch` (from 0) with the last values of nnU-Net's logging in `log`.

    share: of its training iterations that were computed since its start was noted, less than 1 right after a resume;
    before: seconds of earlier epochs. Terms are given for training, validation.
    """
    seconds = log["epoch_end_timestamps"] - log["epoch_start_timestamps"]
    length = seconds / share if share >= ENOUGH else median(before or [seconds])
    left = f", about {duration(length * (num_epochs - epoch - 1))} left" if epoch + 1 < num_epochs else ""
    names = dict.fromkeys(
        k.partition("_")[2] for k in log if k.startswith(("train_", "val_")) and "losses" not in k and k != YARDSTICK
    )
    terms = "".join(
        f"; {name} {', '.join(f'{log[key]:.4f}' for key in (f'train_{name}', f'val_{name}') if key in log)}"
        for name in names
    )
    yardstick = f", yardstick {log[YARDSTICK]:.4f}" if YARDSTICK in log else ""
    return (
        f"Epoch {epoch + 1}/{num_epochs}: training loss {log['train_losses']:.4f}, validation loss {log['val_losses']:.4f}"
        f"{yardstick}{terms}; learning rate {log['lrs']:.3g}; {duration(seconds)}{left}"
    )
