"""Which errors mean that no memory is left; a GPU and its libraries say so in many words."""

from __future__ import annotations

import pytest
import torch

from nnunet_ssl.trainers.device.memory import is_out_of_memory

GIB = 2**30
NO_ENGINE = RuntimeError("GET was unable to find an engine to execute this computation")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    ],
    ids=lambda error: str(error)[-40:] or type(error).__name__,
)
def test_these_do(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
    ],
    ids=str,
)
def test_these_do_not(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("free", "reserved", "allocated", "full"),
    [
        (1, 78, 77, True),  # 2 GiB of 80 are left
        (1, 78, 50, False),  # little for others, but torch has 28 GiB in hand
        (40, 39, 39, False),
        (1, 5, 5, True),  # somebody else has taken the rest
    ],
)
def test_a_convolution_without_engine_means_memory_on_a_full_gpu(monkeypatch, free, reserved, allocated, full):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: allocated * GIB)
    assert is_out_of_memory(NO_ENGINE) is full


def test_without_a_gpu_no_engine_is_another_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not is_out_of_memory(NO_ENGINE)


def test_reserved_memory_is_reported_for_a_gpu(monkeypatch):
    from nnunet_ssl.report.benchmark import Memory
    from nnunet_ssl.report.benchmark_table import _memory
    from nnunet_ssl.trainers.device.memory import peak_reserved_on_device

    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 12 * GIB)
    assert peak_reserved_on_device(torch.device("cuda")) == 12 * GIB
    assert peak_reserved_on_device(torch.device("cpu")) is None
    rows = dict(_memory(Memory(device=11 * GIB, reserved=12 * GIB, process=GIB, workers=None)))
    assert rows == {"tensors on the device": "11.00", "reserved for them": "12.00", "this process": "1.00"}
