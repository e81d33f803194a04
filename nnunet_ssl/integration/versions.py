"""Where nnU-Net's versions differ for us: 2.8 and what its development branch announces, each difference said once.

`tests/compat` has a stand-in for every announced change. A version number does not tell them apart (2.8.1 is the release and
the development branch), so this asks what is there, never which number it has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed as dist

_exists_group = dist.is_initialized  # the function itself, also while `without_process_group` says no


def process_number() -> int:
    """The number of this process among all of the run, over all nodes; 0 for one that is alone.

    nnU-Net's `local_rank` says this in 2.8 and the number within the node later on, where it is `global_rank`: what one process
    does for all must never depend on it.
    """
    return dist.get_rank() if _exists_group() else 0


def is_first() -> bool:
    """Whether this process is the one that writes logs, checkpoints and pictures for all of the run."""
    return process_number() == 0


@contextmanager
def without_process_group(device: torch.device) -> Iterator[None]:
    """While the block runs, nnU-Net's constructor on another device than a GPU sees no process group.

    It takes every group for one of GPUs, and later on refuses others. `join_group` makes up for what it does for groups.
    """
    if device.type == "cuda" or not _exists_group():
        yield
        return
    seen, dist.is_initialized = dist.is_initialized, lambda: False
    try:
        yield
    finally:
        dist.is_initialized = seen


def join_group(trainer: Any) -> None:
    """Tell a trainer that was made `without_process_group` which process it is."""
    if not _exists_group() or trainer.is_ddp:
        return
    trainer.is_ddp = True
    number, processes = dist.get_rank(), dist.get_world_size()
    if hasattr(trainer, "global_rank"):
        trainer.global_rank, trainer.world_size = number, processes
        trainer.local_rank = int(os.environ.get("LOCAL_RANK", number))
        trainer.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    else:
        trainer.local_rank = number
