"""Mixed precision: bfloat16 wherever the hardware has it, CPUs included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from nnunet_ssl.backbones.attention import attend_by_products_when_short
from nnunet_ssl.backbones.bfloat16_conv3d import avoid_bfloat16_conv3d_bug
from nnunet_ssl.backbones.norms import keep_layout

_assumed: torch.dtype | None = None


@contextmanager
def assuming(dtype: torch.dtype) -> Iterator[None]:
    """For the time of the context, all devices compute in this precision: tensors are only counted, not computed."""
    global _assumed
    before, _assumed = _assumed, dtype
    try:
        yield
    finally:
        _assumed = before


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device computes it natively, float16 on older GPUs, None for plain float32."""
    if _assumed is not None:
        return _assumed
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return None


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Context in which networks run in the device's best precision."""
    dtype = autocast_dtype(device)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def run_in_autocast(network: nn.Module, device: torch.device) -> None:
    """Make a network run itself in mixed precision on a CPU, and return float32.

    nnU-Net's own training step leaves CPUs in float32; on those with bfloat16 units that costs a factor of two.
    """
    if device.type != "cpu" or autocast_dtype(device) is None:
        return
    avoid_bfloat16_conv3d_bug(network)
    keep_layout(network)
    attend_by_products_when_short(network)
    contexts: list[AbstractContextManager[object]] = []

    def enter(*_: object) -> None:
        contexts.append(autocast(device))
        contexts[-1].__enter__()

    def leave(_module: nn.Module, _args: object, output: object) -> object:
        contexts.pop().__exit__(None, None, None)
        if isinstance(output, (list, tuple)):
            return type(output)(o.float() for o in output)
        return output.float() if isinstance(output, torch.Tensor) else output

    network.register_forward_pre_hook(enter)
    network.register_forward_hook(leave, always_call=True)
