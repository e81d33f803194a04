"""On a GPU: the same operations in the same order every time, as far as torch can, for who needs the same bits again."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

WORKSPACE, FIXED = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"  # NVIDIA's: a buffer of its own for every stream of cuBLAS


@contextmanager
def deterministic(log: Callable[[str], object]) -> Iterator[None]:
    """For the time of the context, CUDA computes with deterministic algorithms, and everything is put back afterwards.

    Operators that have none run as they are; `log` is told which, each time they say so. To be entered before the first
    product of matrices on the GPU, when cuBLAS decides on its memory.

    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    cudnn: Any = torch.backends.cudnn
    fill: Any = torch.utils.deterministic
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    flags, filled = (cudnn.deterministic, cudnn.benchmark), fill.fill_uninitialized_memory
    workspace = os.environ.get(WORKSPACE)
    os.environ.setdefault(WORKSPACE, FIXED)
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        cudnn.deterministic, cudnn.benchmark = True, False
        fill.fill_uninitialized_memory = False  # which helps to find mistakes, and is time spent in every step
        with warnings.catch_warnings():
            _send_to(log)
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = flags
        fill.fill_uninitialized_memory = filled
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


def _send_to(log: Callable[[str], object]) -> None:
    """Send torch's warnings of operators that are not deterministic to the log instead of the screen."""
    show = warnings.showwarning

    def say(message: Warning | str, *place: Any, **options: Any) -> None:
        what, not_deterministic, _ = str(message).partition(" does not have a deterministic implementation")
        if not_deterministic:
            log(f"{what} has no deterministic counterpart: the results of another run may differ in their last digits.")
        elif "deterministic" in what:
            log(what)
        else:
            show(message, *place, **options)

    warnings.filterwarnings("always", message="(?s).*deterministic")
    warnings.showwarning = say
