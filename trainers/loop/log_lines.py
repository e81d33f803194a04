"""What the log of a pre-training says: a summary at its start, and a line per epoch. Epochs are counted from 1 in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from os.path import join
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from nnunet_ssl.corpus.check import shape_text
from nnunet_ssl.messages import counted
from nnunet_ssl.trainers.device.precision import autocast_dtype
from nnunet_ssl.trainers.loop.judging import YARDSTICK
from nnunet_ssl.trainers.loop.progress import duration

if TYPE_CHECKING:
    from nnunet_ssl.trainers.ssl_trainer import SSLTrainer

ENOUGH = 0.2  # of an epoch's iterations, from which its length can be told


def summary(trainer: SSLTrainer) -> str:
    """What is trained, on what, how, and where it is written: a few lines in place of nnU-Net's dump of all plans."""
    plans, configuration, recipe = trainer.plans_manager, trainer.configuration_manager, trainer.recipe
    network = trainer.method.bare_network
    size = sum(p.numel() for p in network.parameters()) / 1e6
    spacing = " x ".join(f"{s:.3g}" for s in configuration.spacing)
    config = ", ".join(f"{key}={value!r}" for key, value in asdict(trainer.method_config).items())
    parts = trainer.settings.accumulate
    clipped = f", gradients clipped at {recipe.grad_clip:g}" if recipe.grad_clip else ", gradients not clipped"
    begun = f", goes on in epoch {trainer.current_epoch + 1}" if trainer.position.resumed else ""
    deterministic = ", deterministic algorithms, not compiled" if trainer.wants_determinism else ""
    precision = str(autocast_dtype(trainer.device) or torch.float32).removeprefix("torch.")
    rows = {
        "data": f"{' and '.join([plans.dataset_name, *trainer.settings.datasets])}, {trainer.configuration_name} of "
        f"{plans.plans_name}, fold {trainer.fold}",
        "network": f"{type(network).__name__}, {size:.1f} million parameters, "
        f"{counted(trainer.num_input_channels, 'input channel')}",
        "patches": f"{shape_text(trainer.views.network_size)} voxels of {spacing} mm; batch size {trainer.total_batch_size}"
        f"{f' in {parts} parts per process' if parts > 1 else ''}",
        "task": f"{trainer.method_name}: {config}",
        "recipe": f"{recipe.optimizer}, learning rate {recipe.initial_lr:g}, weight decay {recipe.weight_decay:g}"
        f"{clipped} ({recipe.source})",
        "length": f"{counted(recipe.num_epochs, 'epoch')} of {counted(trainer.num_iterations_per_epoch, 'iteration')}, "
        f"the first {recipe.warmup_epochs} as warm-up{begun}",
        "device": f"{trainer.device}, {precision}{deterministic}",
        "written to": trainer.output_folder,
        "settings": join(trainer.output_folder_base, "plans.json"),
        "please cite": trainer.method_class.citation,
    }
    return "\n".join(["Pre-training", *(f"  {key + ':':<13}{value}" for key, value in rows.items())])


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
