"""Losses over the batch of all processes, such that averaging gradients gives those of one process with all of it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from nnunet_ssl.errors import SettingsError


class _Gather(torch.autograd.Function):
    """All-gather along the first axis whose backward pass adds up what all processes ask of this one's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


class _Sum(torch.autograd.Function):
    """All-reduce whose backward pass adds up what all processes ask of the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def processes(together: bool) -> int:
    """Number of processes that share a batch; 1 where this process is on its own or `together` is False."""
    return dist.get_world_size() if together and dist.is_available() and dist.is_initialized() else 1


def rank(together: bool) -> int:
    """The number of this process among those that share the batch, 0 for one that is alone."""
    return dist.get_rank() if processes(together) > 1 else 0


def gather(x: Tensor, together: bool) -> Tensor:
    """Rows of all processes [P * N, ...] in the order of their ranks, differentiable; every one brings as many, N."""
    if processes(together) == 1:
        return x
    if x.dtype is torch.bool:
        return gather(x.to(torch.uint8), together).bool()
    return _Gather.apply(x.contiguous())


def global_sum(x: Tensor, together: bool) -> Tensor:
    """Sum of a tensor over all processes, differentiable."""
    return x if processes(together) == 1 else _Sum.apply(x)


def shared_counts(counts: dict[str, Tensor], together: bool) -> dict[str, Tensor]:
    """Scalars as float32 means over all processes, see `Method.counts`."""
    if not counts:
        return {}
    values = torch.stack([c.detach().float() for c in counts.values()])
    if processes(together) > 1:
        dist.all_reduce(values)
    return dict(zip(counts, values / processes(together), strict=True))


def global_mean(values: Tensor, weights: Tensor, together: bool) -> Tensor:
    """This process' part of the weighted mean over all processes; 0 where no weight is left.

    The mean of the results over the processes is the mean of all values, whatever weight each process has: so DDP's
    averaged gradients are exact.
    """
    total = weights.detach().float().sum()
    number = processes(together)
    if number > 1:
        dist.all_reduce(total)
    return (values * weights).sum() * number / torch.where(total > 0, total, torch.ones_like(total))


def warn_if_few(
    method: str,
    images: int,
    enough: int,
    recipe: int,
    together: bool,
    task: str = "comparing the images of a batch",
    purpose: str = "to be meaningful",
) -> None:
    """Warn when fewer than `enough` images are compared. images: per process; enough, recipe: over all processes."""
    total = images * processes(together)
    if total < enough:
        warnings.warn(
            f"{method} learns by {task}, and a batch of {total} is too small {purpose}. The recipe has {recipe} "
            f"over all processes: --batch-size {recipe}, with --accumulate N if that is too much for the memory.",
            stacklevel=2,
        )


def check_images(method: str, images: int, enough: int, recipe: int, together: bool) -> None:
    """Raise SettingsError when images shall be compared and there is only one; else as `warn_if_few`."""
    if images * processes(together) < 2:
        raise SettingsError(
            f"{method} compares images with each other and got a batch of one. Use at least 2 images over all "
            f"processes; the recipe has {recipe}: --batch-size {recipe}, with --accumulate N if that is too much for "
            "the memory."
        )
    warn_if_few(method, images, enough, recipe, together)
