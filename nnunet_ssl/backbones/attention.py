"""On a CPU, short sequences attend faster through plain matrix products than through the fused kernel."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

SHORT = 512  # tokens up to which it was measured to pay (benchmarks/LOG.md); the scores take memory, [B, heads, N, N]


def attend_by_products_when_short(module: nn.Module) -> None:
    """Make every attention of timm's that can do so choose by the length of its sequence [B, N, C]."""

    def choose(attention: Any, arguments: tuple[Tensor, ...]) -> None:
        attention.fused_attn = arguments[0].shape[1] > SHORT

    for child in module.modules():
        if isinstance(getattr(child, "fused_attn", None), bool):
            child.register_forward_pre_hook(choose)
