"""Keep convolutions over very thin feature maps out of bfloat16 on CPUs, where their gradients are garbage.

torch 2.12 on an AMD CPU with avx512_bf16: the weight gradient of conv3d in bfloat16 contains uninitialised memory whenever
the first spatial axis is longer than one voxel and shorter than the kernel, as at the bottleneck of small crops. Other
axes, float32 and GPUs are not affected. No report of it was found in PyTorch's or oneDNN's issues (the nearest is
https://github.com/pytorch/pytorch/issues/68868); `tests/unit/test_thin_convolutions.py` tells when it is mended.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn


def is_thin(conv: nn.Conv3d, x: Tensor) -> bool:
    """Whether the first axis of a feature map [B, C, D, H, W] on a CPU is one that bfloat16 gets wrong."""
    return x.device.type == "cpu" and 1 < x.shape[2] < conv.kernel_size[0]


def avoid_bfloat16_conv3d_bug(module: nn.Module) -> None:
    """Make every 3D convolution in `module` compute in float32 where its input is too thin for bfloat16 on a CPU."""
    running: list[AbstractContextManager[Any]] = []  # convolutions do not nest: never more than one

    def enter(conv: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not is_thin(conv, arguments[0]):  # type: ignore[arg-type]
            return None
        running.append(torch.autocast("cpu", enabled=False))
        running[-1].__enter__()
        return (arguments[0].float(),)

    def leave(_conv: nn.Module, _arguments: tuple[Any, ...], _output: Any) -> None:
        if running:
            running.pop().__exit__(None, None, None)

    for child in module.modules():
        if isinstance(child, nn.Conv3d):
            child.register_forward_pre_hook(enter)
            child.register_forward_hook(leave, always_call=True)
