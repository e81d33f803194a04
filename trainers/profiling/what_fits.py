"""What to type where a batch does not fit: smaller ones, and other ways to compute it, are tried until one runs."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import torch

from nnunet_ssl.corpus.check import shape_text
from nnunet_ssl.trainers.data.loading import share_of_batch
from nnunet_ssl.trainers.device import memory
from nnunet_ssl.trainers.device.devices import device_name
from nnunet_ssl.trainers.launch import Run
from nnunet_ssl.trainers.profiling.measuring import started, train


def with_batch(run: Run, batch_size: int | None, processes: int = 1) -> Run:
    """The run with another batch, or with the share that one of several processes has of its own."""
    plans = deepcopy(run.plans)
    configuration = plans["configurations"][run.configuration]
    block = configuration.setdefault("ssl", {})
    total = batch_size or block.get("batch_size") or configuration["batch_size"]
    block["batch_size"] = share_of_batch(total, processes, block.get("accumulate", 1))
    return replace(run, plans=plans)


def recomputing(run: Run) -> Run:
    """The run with activations that are forgotten and computed again."""
    plans = deepcopy(run.plans)
    plans["configurations"][run.configuration]["ssl"]["recompute"] = True
    return replace(run, plans=plans)


def what_fits(run: Run, device: torch.device, say: Callable[[str], None]) -> str:
    """The message for a batch that does not fit: the largest one that runs, by halving, and what to type."""
    configuration = run.plans["configurations"][run.configuration]
    block, size = configuration["ssl"], shape_text(configuration["patch_size"])
    wanted, micro_batches = block["batch_size"], block.get("accumulate", 1)
    message = f"Out of memory with a batch of {wanted} at {size} voxels on {device_name(device)}."
    if not block.get("recompute", False):
        say("out of memory; trying to recompute activations")
        if _fits(recomputing(run)):
            message += f" {wanted} fit with --set recompute=true, about a third slower."
    fits = wanted // 2
    while fits and fits % micro_batches == 0:
        say(f"out of memory; trying a batch of {fits}")
        if _fits(with_batch(run, fits)):
            break
        fits //= 2
    if not fits or fits % micro_batches:
        return f"{message} No smaller batch ran either. Try a smaller patch: --patch-size N"
    same = (
        f", or {wanted} in micro-batches of {fits // micro_batches}: --set accumulate={wanted * micro_batches // fits}"
    )
    return f"{message} The largest that ran has {fits}: --batch-size {fits}{same if wanted % fits == 0 else ''}"


def _fits(run: Run) -> bool:
    """Whether two steps of a run find memory; the second one has the optimiser's state beside it."""
    memory.give_back(torch.device(run.device))
    try:
        with started(run, 2) as trainer:
            train(trainer, 2)
    except ValueError:  # too few images for a loss that compares them
        return False
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        return False
    return True
