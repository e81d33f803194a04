"""One optimisation step, and what becomes of its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer


def backward_and_step(
    loss: Tensor, network: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler | None, grad_clip: float
) -> None:
    """Backward pass, gradient clipping by total L2 norm, optimiser step; `scaler` is None except in float16."""
    if scaler is None:
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
        optimizer.step()
        return
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
    scaler.step(optimizer)
    scaler.update()


def mean_over_processes(results: Sequence[Mapping[str, Any]], device: torch.device) -> dict[str, float]:
    """Mean of every named scalar over iterations and processes; waits for the device once."""
    names = list(results[0])
    table = torch.stack([torch.stack([torch.as_tensor(r[n], device=device).float() for n in names]) for r in results])
    means = table.mean(dim=0)
    if dist.is_initialized():
        dist.all_reduce(means)
        means /= dist.get_world_size()
    return dict(zip(names, means.tolist(), strict=True))


@dataclass(frozen=True)
class Replay:
    """Stands for an iteration that an interrupted epoch has behind it already."""

    result: dict[str, float]


def replay(results: Sequence[dict[str, float]], batches: Iterator[Any]) -> Iterator[Any]:
    """First the results of the finished iterations, then real batches: nnU-Net's loop needs no other start."""
    return chain([Replay(r) for r in results], batches)
