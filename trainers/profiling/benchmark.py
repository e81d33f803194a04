"""The benchmark of a pre-training, on the device and with the settings of the real run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_ssl.errors import MachineError, SettingsError
from nnunet_ssl.report.benchmark import Benchmark, Breakdown, Estimate, Flops, Memory, Setting, Speed
from nnunet_ssl.trainers.data.batches import AHEAD
from nnunet_ssl.trainers.device import memory
from nnunet_ssl.trainers.device.devices import device_name, require_device, use_threads
from nnunet_ssl.trainers.device.precision import autocast_dtype
from nnunet_ssl.trainers.launch import Run
from nnunet_ssl.trainers.profiling.measuring import (
    VALIDATION_STEPS,
    estimate_run,
    measure_spans,
    measure_speed,
    next_batch,
    started,
)
from nnunet_ssl.trainers.profiling.peak_flops import conv_peak_flops, count_flops, matmul_peak_flops
from nnunet_ssl.trainers.profiling.what_fits import what_fits, with_batch
from nnunet_ssl.trainers.ssl_trainer import SSLTrainer

MUCH_WAITING = 0.05  # of the step; as much as the project allows itself
UNEVEN = 1.15  # mean over median seconds per iteration


@dataclass(frozen=True)
class Effort:
    """How long to measure: iterations end to end, half as many more for the spans, and those not counted before."""

    iterations: int = 20
    warmup: int = 3

    def __post_init__(self) -> None:
        if self.iterations < 5:
            raise SettingsError(f"--iterations wants 5 or more, found {self.iterations}: fewer say nothing.")
        if self.warmup < 1:
            raise SettingsError(f"--warmup wants 1 or more, found {self.warmup}.")


def benchmark(
    run: Run, effort: Effort = Effort(), processes: int = 1, say: Callable[[str], None] = lambda _: None
) -> Benchmark:
    """Measure a run in this process, as one of `processes` that share its batch; `say` is told what happens.

    Nothing of the measured training is kept. Raises MachineError, naming the largest batch that ran, when the memory does not
    suffice; SettingsError, CorpusError and NotPreprocessed as the training itself would.
    """
    device = torch.device(run.device)
    require_device(device)
    use_threads(device)
    run = with_batch(run, None, processes)
    try:
        return _benchmark(run, effort, processes, say)
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
    # Only here: within the except clause the traceback would keep the tensors.
    raise MachineError(what_fits(run, device, say))


def _benchmark(run: Run, effort: Effort, processes: int, say: Callable[[str], None]) -> Benchmark:
    device = torch.device(run.device)
    measured = _measure(run, effort, say)  # by a function of its own, so that nothing of the network outlives it
    if measured.setting.compiled:
        torch._dynamo.reset()
    memory.give_back(device)
    say("measuring what the device can do")
    dtype = autocast_dtype(device) or torch.float32
    flops = _flops(
        measured.operations, measured.speed, matmul_peak_flops(device, dtype), conv_peak_flops(device, dtype)
    )
    notes = (*_notes(measured.setting, measured.speed, measured.breakdown, flops, processes), *measured.warnings)
    estimate = replace(measured.estimate, samples=measured.estimate.samples * processes)
    return Benchmark(measured.setting, measured.speed, measured.breakdown, measured.memory, flops, estimate, notes)


@dataclass(frozen=True)
class _Measured:
    setting: Setting
    speed: Speed
    breakdown: Breakdown
    memory: Memory
    operations: int | None
    estimate: Estimate
    warnings: tuple[str, ...]


def _measure(run: Run, effort: Effort, say: Callable[[str], None]) -> _Measured:
    """Everything that needs the trainer."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    # Batches that were ready before the first step would make the loader look faster than it is.
    warmup, spans = max(effort.warmup, AHEAD + 1, 2 * get_allowed_n_proc_DA() + 1), max(5, effort.iterations // 2)
    memory.forget_peaks(torch.device(run.device))
    say("building the network and starting the workers")
    with started(run, warmup + effort.iterations + spans + 1) as trainer:
        say(f"{warmup} iterations to warm up, {effort.iterations} end to end")
        speed = measure_speed(trainer, effort.iterations, warmup)
        say(f"{spans} iterations span by span ({speed.mean:.3g} s each end to end)")
        breakdown, peaks = measure_spans(trainer, spans)
        say(f"{VALIDATION_STEPS} validation iterations, and checkpoints")
        estimate = estimate_run(trainer, speed.mean)
        say("counting floating-point operations")
        operations = count_flops(trainer, next_batch(trainer))
        return _Measured(_setting(run, trainer, load), speed, breakdown, peaks, operations, estimate, trainer.warned)


def _setting(run: Run, trainer: SSLTrainer, load: float | None) -> Setting:
    return Setting(
        method=run.method,
        network=run.plans["plans_name"],
        parameters=sum(p.numel() for p in trainer.method.parameters()),
        data=run.plans["dataset_name"],
        patch_size=tuple(trainer.configuration_manager.patch_size),
        batch_size=trainer.batch_size,
        accumulate=trainer.settings.accumulate,
        recompute=trainer.settings.recompute,
        precision=str(autocast_dtype(trainer.device) or torch.float32).removeprefix("torch."),
        device=device_name(trainer.device),
        compiled=trainer.compiler.on,
        workers=get_allowed_n_proc_DA(),
        threads=torch.get_num_threads(),
        cores=os.cpu_count() or 1,
        load_average=load,
        versions={name: version(name) for name in ("nnunet_ssl", "nnunetv2", "torch")},
    )


def _flops(operations: int | None, speed: Speed, matmul: float, conv: float) -> Flops:
    if operations is None:
        return Flops(None, None, matmul, conv, None, None)
    achieved = operations / speed.mean
    return Flops(operations, achieved, matmul, conv, achieved / matmul, achieved / conv)


def _notes(setting: Setting, speed: Speed, breakdown: Breakdown, flops: Flops, processes: int) -> list[str]:
    """What a reader of the figures has to know."""
    notes, waiting = [], breakdown.shares["data"]
    if setting.load_average is not None and setting.load_average > 0.5 * setting.cores:
        notes.append(
            f"The machine was busy before the measuring began (load {setting.load_average:.1f} on {setting.cores} cores): "
            "seconds are too long, shares uncertain."
        )
    if speed.mean > UNEVEN * speed.median:
        notes.append(
            f"Iterations took {speed.mean:.3g} s in the mean but {speed.median:.3g} s in the median: the loader delivers in "
            "bursts, or something else took the device at times."
        )
    if waiting > MUCH_WAITING and setting.workers:
        notes.append(
            f"{waiting:.0%} of the step waits for data. More than {setting.workers} reading processes may help: --workers N, "
            "and in training export nnUNet_n_proc_DA=N."
        )
    if not setting.workers:
        notes.append("Without workers the training process reads the data itself, and computes nothing meanwhile.")
    if processes > 1:
        notes.append(
            f"One of {processes} processes was measured, with its share of the batch. What the exchange of gradients costs, "
            "and what the others take of the machine, comes on top."
        )
    if flops.per_iteration is None:
        notes.append("Operations were not counted: without torch.compile the step does not fit into the memory.")
    return notes
