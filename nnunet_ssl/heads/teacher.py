"""A teacher that follows its student as an exponential moving average of its weights, and the schedules of both.

Tarvainen and Valpola, "Mean teachers are better role models" (NeurIPS 2017, https://arxiv.org/abs/1703.01780).
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from math import cos, pi
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

M = TypeVar("M", bound=nn.Module)


def rising_momentum(first: float, last: float, progress: float) -> float:
    """Momentum of a teacher after a share `progress` of the training: from `first` to `last` along half a cosine (BYOL)."""
    return last - (last - first) * (1 + cos(pi * progress)) / 2


def warmed_up(first: float, last: float, length: float, progress: float) -> float:
    """A number that goes from `first` to `last` in a straight line over the share `length` of the training, and stays there."""
    return last if progress >= length else first + (last - first) * progress / length


def twin_of(student: M) -> M:
    """A copy of a module that wants no gradients, in evaluation mode: a teacher drops no paths."""
    return deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float, moved: Tensor) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for all weights and running statistics.

    moved: bool on the device; where it is False everything stays as it is. Sharded weights follow part by part.
    """
    share = (1 - momentum) * moved.float()
    for slow, fast in zip(_numbers(teacher), _numbers(student), strict=True):
        slow.lerp_(fast.to(slow.dtype), share.to(slow.dtype))


def _numbers(module: nn.Module) -> Iterator[Tensor]:
    """All floating-point parameters and buffers, each once."""
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            local: Any = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            yield local


class RunningMean(nn.Module):
    """A mean over the batches of many steps, `value` [N], which `take_in` moves: state, but nothing that is trained.

    The first steps count alike, until each new one has the share 1 - momentum; so it is right from the second step on.
    """

    value: Tensor
    steps: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", start)
        self.register_buffer("steps", torch.zeros(()))  # taken in so far

    @torch.no_grad()
    def take_in(self, total: Tensor, number: Tensor, momentum: float, moved: Tensor) -> None:
        """Move towards total / number; stay where `moved` (bool) is False or there is no number. All on the device."""
        known = moved & (number > 0)
        share = (1 / (self.steps + 1)).clamp(min=1 - momentum)
        new = self.value + share * (total / number.clamp(min=1) - self.value)
        self.value.copy_(
            torch.where(known, new, self.value)
        )  # not multiplied by 0: what is left out need not be finite
        self.steps += known
