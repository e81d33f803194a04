"""Which device this process computes on."""

from __future__ import annotations

import ctypes
import os
import platform
from multiprocessing import cpu_count
from pathlib import Path

import torch
from torch import distributed as dist

from nnunet_ssl.errors import MachineError

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h without their M_
GIB = 2**30


def require_device(device: torch.device) -> None:
    """Raise MachineError, saying what to type, when the device is not there."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            "CUDA was asked for, but this machine has no usable NVIDIA GPU (torch.cuda.is_available() is False). "
            "Add -device cpu to compute on the processor, or check the driver with nvidia-smi."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise MachineError("MPS was asked for, but this machine has none. Add -device cpu or -device cuda.")


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else f"{platform.machine()} {device.type}"


def device_of_this_process(asked: torch.device) -> torch.device:
    """The asked device, with the GPU that belongs to this process; under DDP one GPU each, CPUs stay CPUs."""
    if asked.type != "cuda":
        return asked
    index = int(os.environ.get("LOCAL_RANK", dist.get_rank() if dist.is_initialized() else 0))
    return torch.device("cuda", index)


def use_threads(device: torch.device) -> None:
    """Share the cores among the processes of this machine that compute on CPUs; beside a GPU one thread is enough."""
    if device.type == "cpu":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size() if dist.is_initialized() else 1))
        torch.set_num_threads(max(1, cpu_count() // local))
    else:
        torch.set_num_threads(1)
        torch.backends.cudnn.benchmark = True


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU: let glibc keep the memory of freed tensors for the next ones, instead of giving it back each time.

    By default large tensors come fresh from the system, which fills every page with zeros: a fifth of the CPU time of a
    U-Net's step (benchmarks/LOG.md). The peak is the same, but it stays the process' own until it ends. Other C libraries
    are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if device.type == "cpu" and mallopt is not None:
        mallopt(MMAP_THRESHOLD, GIB)
        mallopt(TRIM_THRESHOLD, -1)  # never
