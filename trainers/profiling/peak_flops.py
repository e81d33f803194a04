"""How many floating-point operations a step takes, and how many per second the device reaches at best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import conv3d
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from nnunet_ssl.backbones.drop_path import computing_what_is_dropped

if TYPE_CHECKING:
    from nnunet_ssl.trainers.ssl_trainer import SSLTrainer

REPEATS = 7
# Edge of square matrices; (images, channels, voxels per axis) of 3 x 3 x 3 convolutions, early and late in a U-Net.
MATRIX = {"cpu": 2048, "other": 8192}
CONVOLUTIONS = {"cpu": ((2, 64, 32), (2, 256, 8)), "other": ((8, 64, 96), (8, 256, 24))}


def count_flops(trainer: SSLTrainer, batch: Mapping[str, Any]) -> int | None:
    """Operations of one training step, forward and backward: two per multiplication with addition.

    Only matrix products, convolutions and attention count. The step runs without torch.compile, whose kernels cannot be
    looked into, but computes what the compiled one does; None when the memory does not suffice for that.
    """
    as_compiled = computing_what_is_dropped() if trainer.compiler.on else nullcontext()
    try:
        with as_compiled, trainer.compiler.switched_off(), flop_counter() as counter:
            trainer.train_step(dict(batch))
    except torch.OutOfMemoryError:
        return None
    return counter.get_total_flops()


def flop_counter() -> FlopCounterMode:
    """torch's counter of operations, which by itself does not know the attention of CPUs and takes it for nothing."""

    def forward(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **_options: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(
        out: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **_o: Any
    ) -> int:
        return sdpa_backward_flop_count(out, query, key, value)

    aten = torch.ops.aten
    operators = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    # The overloads as well: else the operators are counted by their decompositions, where some import has registered any.
    overloads = {operator.default: count for operator, count in operators.items()}
    return FlopCounterMode(display=False, custom_mapping={**operators, **overloads})


@torch.no_grad()
def matmul_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the product of two large square matrices."""
    edge = MATRIX["cpu" if device.type == "cpu" else "other"]
    a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    return 2 * edge**3 / best_seconds(lambda: a @ b, device)


@torch.no_grad()
def conv_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the forward pass of the faster of two 3 x 3 x 3 convolutions."""
    found = []
    for images, channels, edge in CONVOLUTIONS["cpu" if device.type == "cpu" else "other"]:
        x = torch.randn(images, channels, edge, edge, edge, device=device, dtype=dtype)
        kernel = torch.randn(channels, channels, 3, 3, 3, device=device, dtype=dtype)
        flops = 2 * 27 * channels**2 * images * edge**3
        found.append(flops / best_seconds(partial(conv3d, x, kernel, padding=1), device))
    return max(found)


def best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Shortest time of one call, of several after a warm-up: what the device can do, whatever else is going on."""
    wait = torch.get_device_module(device).synchronize
    calls = 1 if device.type == "cpu" else 10  # as a train, for the time to start a kernel is not the kernel's
    times = []
    for _ in range(REPEATS + 1):
        wait()
        start = perf_counter()
        for _ in range(calls):
            work()
        wait()
        times.append((perf_counter() - start) / calls)
    return min(times[1:])
