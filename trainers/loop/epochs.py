"""What becomes of the results of an epoch's iterations: means, log lines, pictures; and how a broken epoch is continued."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from os.path import join
from time import time
from typing import Any

import torch
from torch import distributed as dist

from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.integration.logger import log_picture
from nnunet_ssl.integration.versions import is_first
from nnunet_ssl.report.attempt import attempt_to_draw
from nnunet_ssl.trainers.context import RunContext
from nnunet_ssl.trainers.loop.judging import YARDSTICK, last_finite
from nnunet_ssl.trainers.loop.log_lines import epoch_line
from nnunet_ssl.trainers.loop.previews import draw_sample, update_report, write_sample
from nnunet_ssl.trainers.loop.probing import probe_epoch


def mean_over_processes(results: Sequence[Mapping[str, Any]], device: torch.device) -> dict[str, float]:
    """Mean of every named scalar over iterations and processes, as far as it is finite (NaN where nothing is).

    First over the processes, iteration by iteration, rounded as the numbers of one process are: an epoch that is stopped in
    between stores these means, and comes to the same figures when it is continued. Waits for the device once.
    """
    names = list(results[0])
    table = torch.stack([torch.stack([torch.as_tensor(r[n], device=device).float() for n in names]) for r in results])
    if dist.is_initialized():
        known = table.isfinite()
        both = torch.stack([torch.where(known, table, 0), known]).double()  # sums of these are exact
        dist.all_reduce(both)
        table = (both[0] / both[1]).float()  # NaN where no process has a finite number
    known = table.isfinite()
    sums = torch.stack([torch.where(known, table, 0).sum(dim=0), known.sum(dim=0).float()])
    return {n: t / k if k else math.nan for n, t, k in zip(names, *sums.tolist(), strict=True)}


@dataclass(frozen=True)
class Replay:
    """Stands for an iteration that an interrupted epoch has behind it already."""

    result: dict[str, float]


def replay(results: Sequence[dict[str, float]], batches: Iterator[Any]) -> Iterator[Any]:
    """First the results of the finished iterations, then real batches: nnU-Net's loop needs no other start."""
    return chain([Replay(r) for r in results], batches)


def log_results(trainer: RunContext, results: Sequence[Mapping[str, Any]], kind: str) -> None:
    """Log the means of an epoch's iterations; kind: "train" or "val"."""
    means = mean_over_processes(results, trainer.device)
    trainer.logger.log(f"{kind}_losses", means.pop("loss"), trainer.current_epoch)
    for name, value in means.items():
        trainer.logger.log(f"{kind}_{name}", value, trainer.current_epoch)


def log_yardstick(trainer: RunContext, values: Sequence[torch.Tensor]) -> None:
    """Log the loss of the trivial answer on this epoch's validation batches, or where it is known already, that."""
    if values:
        value = mean_over_processes([{"loss": v} for v in values], trainer.device)["loss"]
    else:
        known = last_finite(trainer.logger.local_logger.my_fantastic_logging.get(YARDSTICK, ()))
        if known is None:
            return
        value = known
    trainer.logger.log(YARDSTICK, value, trainer.current_epoch)


def finish_epoch(trainer: RunContext) -> None:
    """Write the epoch's log lines, its checkpoints, its pictures and the page of the run."""
    trainer.logger.log("epoch_end_timestamps", time(), trainer.current_epoch)
    log = {k: v[-1] for k, v in trainer.logger.local_logger.my_fantastic_logging.items() if v}
    kept = trainer.logger.local_logger.my_fantastic_logging
    before = [b - a for a, b in zip(kept["epoch_start_timestamps"], kept["epoch_end_timestamps"], strict=False)][:-1]
    line = epoch_line(log, trainer.current_epoch, trainer.num_epochs, trainer.share_of_epoch, before)
    trainer.print_to_log_file(line)
    attempt_to_draw(trainer.print_to_log_file, probe_epoch, trainer, what="the probe failed")
    last = trainer.current_epoch == trainer.num_epochs - 1
    due = (trainer.current_epoch + 1) % trainer.save_every == 0
    if due and not last:
        save_unless_disk_is_full(trainer, "checkpoint_latest.pth")
    # Early in a training nearly every epoch is the best so far, and a large checkpoint costs a few percent of an epoch.
    best = trainer.position.best
    if (due or last) and math.isfinite(log["val_losses"]) and not (best is not None and log["val_losses"] >= best):
        trainer.position.best = log["val_losses"]
        save_unless_disk_is_full(trainer, "checkpoint_best.pth")
    if is_first():
        attempt_to_draw(trainer.print_to_log_file, draw_epoch, trainer, last)
    update_report(trainer)


def save_unless_disk_is_full(trainer: RunContext, name: str) -> None:
    """Save on the way; a full disk costs this checkpoint, not the run."""
    try:
        trainer.save_checkpoint(join(trainer.output_folder, name))
    except (OSError, CheckpointError) as error:
        trainer.print_to_log_file(f"WARNING: {name} was not saved, the training goes on without it: {error}")


def draw_epoch(trainer: RunContext, last: bool) -> None:
    """The curves after every epoch, the preview after about twenty of a run and after the last."""
    trainer.logger.plot_progress_png(trainer.output_folder)
    if last or trainer.current_epoch % max(1, trainer.num_epochs // 20) == 0:
        os.makedirs(join(trainer.output_folder, "previews"), exist_ok=True)
        epoch = trainer.current_epoch + 1
        file = join(trainer.output_folder, "previews", f"epoch_{epoch:04d}.png")
        title = f"{trainer.method_name}, validation, epoch {epoch}"
        draw_sample(trainer, trainer.preview, trainer.preview_key, file, title)
        log_picture(trainer.logger, "preview", file, trainer.current_epoch)
        if trainer.settings.preview_nifti:
            write_sample(trainer, trainer.preview, trainer.preview_key, file.removesuffix(".png"))
