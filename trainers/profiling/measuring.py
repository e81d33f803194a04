"""What can be measured of a trainer that has been started: steps, their spans, validation, checkpoints."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from itertools import pairwise
from os.path import getsize, isdir, join
from statistics import fmean, median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results

from nnunet_ssl.corpus.environment import environment
from nnunet_ssl.report.benchmark import PARTS, Breakdown, Estimate, Memory, Speed
from nnunet_ssl.trainers import launch
from nnunet_ssl.trainers.device import memory
from nnunet_ssl.trainers.pretraining import trainer_class
from nnunet_ssl.trainers.profiling.spans import SpanTimer, span
from nnunet_ssl.trainers.ssl_trainer import SSLTrainer

VALIDATION_STEPS = 5
CHECKPOINTS, CHECKPOINT_SECONDS = 5, 10.0  # write so many, but start none after so long
FILES_AT_ONCE = 4  # latest, the one before it, best, and the one that is being written


@contextmanager
def started(run: launch.Run, iterations: int) -> Iterator[SSLTrainer]:
    """The trainer of a run at the beginning of its first epoch, with batches for so many iterations.

    Its results go to a folder beside the real ones, where checkpoints cost what they will cost, which is removed afterwards.
    """
    beside = str(nnUNet_results) if nnUNet_results.is_set() and isdir(nnUNet_results) else None
    with (
        TemporaryDirectory(prefix=".benchmark_", dir=beside) as folder,
        environment({"nnUNet_results": folder, "nnUNet_wandb_enabled": "0"}),
        redirect_stdout(io.StringIO()),
    ):
        plans = {**deepcopy(run.plans), "continue_training": False}
        device = torch.device(run.device)
        trainer = trainer_class(run.method)(plans, run.configuration, run.fold, run.dataset_json, device)  # type: ignore[arg-type]
        trainer.num_iterations_per_epoch = max(iterations, trainer.num_iterations_per_epoch)
        try:
            trainer.on_train_start()
            trainer.on_epoch_start()
            trainer.on_train_epoch_start()
            yield trainer
        finally:
            trainer.determinism.close()
            if trainer._bar is not None:
                trainer._bar.close()
            trainer.dataloader_train = trainer.dataloader_val = None  # ends their workers


def wait_for(device: torch.device) -> float:
    """The time when everything is computed."""
    torch.get_device_module(device).synchronize()
    return perf_counter()


def next_batch(trainer: SSLTrainer) -> dict[str, Any]:
    """The next training batch."""
    batches: Any = trainer.dataloader_train
    return next(batches)


def train(trainer: SSLTrainer, iterations: int) -> None:
    """So many iterations of nnU-Net's loop."""
    for _ in range(iterations):
        trainer.train_step(next_batch(trainer))


def measure_speed(trainer: SSLTrainer, iterations: int, warmup: int) -> Speed:
    """Iterations end to end; the device is waited for before the first and after the last one only."""
    cuda = trainer.device.type == "cuda"

    def mark() -> float | torch.cuda.Event:
        if not cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    train(trainer, warmup)
    start = wait_for(trainer.device)
    marks = [mark()]
    for _ in range(iterations):
        train(trainer, 1)
        marks.append(mark())
    seconds = wait_for(trainer.device) - start
    if cuda:
        marks = [marks[0].elapsed_time(m) / 1000 for m in marks]  # type: ignore[union-attr, arg-type]
    steps = [b - a for a, b in pairwise(marks)]  # type: ignore[operator]
    deciles = quantiles(steps, n=10, method="inclusive")
    samples = trainer.batch_size * iterations / seconds
    return Speed(iterations, warmup, samples, seconds / iterations, median(steps), deciles[0], deciles[-1])


def measure_spans(trainer: SSLTrainer, iterations: int) -> tuple[Breakdown, Memory]:
    """The spans of so many further iterations, and the peaks of memory so far."""
    timer, workers = SpanTimer(trainer.device), []
    for _ in range(iterations):
        with timer.step():
            with span("data"):
                batch = next_batch(trainer)
            trainer.train_step(batch)
        workers.append(memory.held_by_workers())
    table = {part: [step.get(part, 0.0) for step in timer.steps] for part in PARTS}
    total = sum(map(sum, table.values()))
    shares = {part: sum(seconds) / total for part, seconds in table.items()}
    breakdown = Breakdown(iterations, shares, {p: median(s) for p, s in table.items()}, total / iterations)
    known = [w for w in workers if w is not None]
    peaks = Memory(
        device=memory.peak_on_device(trainer.device),
        reserved=memory.peak_reserved_on_device(trainer.device),
        process=memory.peak_of_this_process(),
        workers=max(known) if known else None,
    )
    return breakdown, peaks


def estimate_run(trainer: SSLTrainer, seconds_per_iteration: float) -> Estimate:
    """A whole run with the trainer's settings, after measuring its validation and its checkpoints."""
    settings = trainer.settings
    epochs, iterations = trainer.num_epochs, settings.num_iterations_per_epoch
    validation = _validation_seconds(trainer)
    checkpoint_seconds, size = _checkpoint_cost(trainer)
    # Every few epochs the latest one and, at most, the best one; after the last epoch the best one and the final one.
    checkpoints = 2 * ((epochs - 1) // settings.save_every) + 2
    seconds = {
        "training_hours": epochs * iterations * seconds_per_iteration,
        "validation_hours": epochs * settings.num_val_iterations_per_epoch * validation,
        "checkpoint_hours": checkpoints * checkpoint_seconds,
    }
    return Estimate(
        epochs=epochs,
        iterations_per_epoch=iterations,
        val_iterations_per_epoch=settings.num_val_iterations_per_epoch,
        samples=epochs * iterations * trainer.total_batch_size,
        hours=sum(seconds.values()) / 3600,
        **{name: s / 3600 for name, s in seconds.items()},
        checkpoint_bytes=size,
        checkpoint_seconds=checkpoint_seconds,
        checkpoints=checkpoints,
        disk_bytes=FILES_AT_ONCE * size,
    )


@torch.no_grad()
def _validation_seconds(trainer: SSLTrainer) -> float:
    """Seconds per validation iteration."""
    trainer.on_validation_epoch_start()
    batches: Any = trainer.dataloader_val
    times = []
    for _ in range(VALIDATION_STEPS + 1):
        start = wait_for(trainer.device)
        trainer.validation_step(next(batches))
        times.append(wait_for(trainer.device) - start)
    trainer.network.train()
    return fmean(times[1:])


def _checkpoint_cost(trainer: SSLTrainer) -> tuple[float, int]:
    """Median seconds to write a checkpoint, and its bytes."""
    path = join(trainer.output_folder, "checkpoint_latest.pth")
    times: list[float] = []
    while len(times) < CHECKPOINTS and sum(times) < CHECKPOINT_SECONDS:
        start = wait_for(trainer.device)
        trainer.save_checkpoint(path)
        times.append(perf_counter() - start)
    return median(times), getsize(path)
