"""Losses over the batch of all processes, such that averaging gradients gives those of one process with all of it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


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
    """Which of them this one is."""
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


def warn_if_few(task: str, images: int, enough: int, recipe: int, together: bool) -> None:
    """Warn when fewer than `enough` images are compared. images: per process; enough, recipe: over all processes."""
    total = images * processes(together)
    if total < enough:
        warnings.warn(
            f"{task} learns by comparing the images of a batch, and {total} {'is' if total == 1 else 'are'} too few to be "
            f"meaningful. The recipe has {recipe} over all processes: --batch-size {recipe}",
            stacklevel=2,
        )


def check_images(task: str, images: int, enough: int, recipe: int, together: bool) -> None:
    """Raise ValueError when images shall be compared and there is only one; else as `warn_if_few`."""
    if images * processes(together) < 2:
        raise ValueError(
            f"{task} compares images with each other and got a batch of one. "
            f"Use at least 2 images over all processes; the recipe has {recipe}: --batch-size {recipe}"
        )
    warn_if_few(task, images, enough, recipe, together)
