"""Which of its kernels attention is computed with.

On a CPU, short sequences attend faster through plain matrix products than through the fused kernel. On a GPU, the backward
pass of the fused ones adds up in any order, unless torch's strict mode asks for their deterministic form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SHORT = 512  # tokens up to which it was measured to pay (benchmarks/LOG.md); the scores take memory, [B, heads, N, N]


def attend_by_products_when_short(module: nn.Module) -> None:
    """Make every attention of timm's that can do so choose by the length of its sequence [B, N, C]."""

    def choose(attention: Any, arguments: tuple[Tensor, ...]) -> None:
        attention.fused_attn = arguments[0].shape[1] > SHORT

    for child in _attentions(module):
        child.register_forward_pre_hook(choose)


def attend_deterministically(module: nn.Module) -> None:
    """Make every attention of timm's strict about deterministic algorithms, forwards and backwards, while these are on.

    With `warn_only` torch warns of attention and goes on as before, although it has what was asked for
    (https://github.com/pytorch/pytorch/pull/182551). Not for compiled code, which knows no hooks of tensors.
    """
    before: list[bool] = []  # whether torch only warned; more than one where blocks are recomputed in the backward pass

    def enter(*_: object) -> None:
        before.append(torch.is_deterministic_algorithms_warn_only_enabled())
        if torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(True)

    def leave(*_: object) -> None:
        if torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(True, warn_only=before[-1])
        before.pop()

    def after(_attention: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        leave()
        if output.requires_grad and arguments[0].requires_grad:  # whose gradient is the last to be known
            output.register_hook(enter)
            arguments[0].register_hook(leave)

    for child in _attentions(module):
        child.register_forward_pre_hook(enter)
        child.register_forward_hook(after)


def _attentions(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.modules() if isinstance(getattr(child, "fused_attn", None), bool)]
