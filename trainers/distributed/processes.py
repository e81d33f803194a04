"""Several processes that act as one: who waits for whom, where they start, and how they stop after the same iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature
from signal import Signals
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssl.errors import MachineError
from nnunet_ssl.methods.base import Method
from nnunet_ssl.trainers.device.compiling import Compiler, Elsewhere, NotCompiled
from nnunet_ssl.trainers.distributed import sharding


def patient_group() -> Any:
    """A group of all processes whose waiting ends in two weeks, not after minutes as NCCL's; None where there is one alone.

    All have to ask for it.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(days=14)) if dist.is_initialized() else None


@contextmanager
def first_process_first() -> Iterator[None]:
    """Run a block in the first process, then in all others, however long it takes: it may preprocess a corpus for days."""
    group = patient_group()
    if group is not None and dist.get_rank() > 0:
        dist.barrier(group)
    yield
    if group is not None and dist.get_rank() == 0:
        dist.barrier(group)


def wait_for_all(group: Any) -> None:
    """Return when all processes are here; `group` as `patient_group` gives it.

    Who destroys the process group while others work makes them fail, or fails itself: NCCL wants all of them there.
    """
    if group is not None:
        dist.barrier(group)


def gathered(own: dict[str, Any], group: Any) -> dict[str, Any]:
    """In the first process the entries of all, in the others their own; `group` as `patient_group` gives it."""
    if group is None:
        return own
    parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(own, parts, dst=0, group=group)
    return own if parts is None else {key: value for part in parts for key, value in part.items()}


def place(
    method: Method, device: torch.device, compiler: Compiler, several: bool, shard: bool
) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """Bring a method to its device, compiled where wanted, in DDP or sharded where there are several processes.

    Returns what to call for a training step, and the method's `encode` and `compare` for calls of their own.
    """
    if shard:
        return sharding.shard(method, device, compiler)
    network, encode = method.to(device), compiler(method.encode)
    if several and method.compares:
        method.encode = encode  # type: ignore[method-assign]  # what processes exchange afterwards is not for a compiler
    else:
        compiler.compile_forward(method)
    return share_gradients(network, device) if several else network, encode, method.compare


def share_gradients(network: Any, device: torch.device) -> nn.Module:
    """The network in DDP. Buffers are constants, the same everywhere, so they are never sent."""
    ids = [device.index] if device.type == "cuda" else None
    new_name = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # torch 2.15 renamed it
    constant: dict[str, Any] = {"forward_sync_buffers" if new_name else "broadcast_buffers": False}
    return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True, **constant)


class Consensus:
    """What the processes of a run agree on, through a gloo group of their own: the device need not be asked.

    A signal reaches the processes in different iterations, or only one of them. One that stopped on its own would leave the
    others waiting for its gradients for ever. So every iteration they tell each other, without waiting, whether they were
    asked to stop, and read the answers one iteration later, when they have long arrived.
    """

    def __init__(self, several: bool) -> None:
        self.group: Any = dist.new_group(backend="gloo") if several else None
        self._told: tuple[Any, Tensor] | None = None

    def agreed(self, asked: Signals | None) -> Signals | None:
        """The signal after which all processes stop now; `asked`: the one this process has received."""
        if self.group is None:
            return asked
        answer = self._answer()
        flag = torch.tensor([asked or 0])
        self._told = (dist.all_reduce(flag, dist.ReduceOp.MAX, self.group, async_op=True), flag)
        return Signals(answer) if answer else None

    def _answer(self) -> int:
        if self._told is None:
            return 0
        work, flag = self._told
        work.wait()
        self._told = None
        return int(flag.item())

    def now(self, asked: int) -> int:
        """The largest number that a process brings; all of them wait for each other here."""
        if self.group is None:
            return asked
        largest = torch.tensor([asked])
        dist.all_reduce(largest, dist.ReduceOp.MAX, self.group)
        return int(largest.item())

    def all_fine(self, fine: bool) -> bool:
        """Whether all processes are, which say so here at the same time."""
        if self.group is None:
            return fine
        failed = torch.tensor([not fine], dtype=torch.int32)
        dist.all_reduce(failed, dist.ReduceOp.MAX, self.group)
        return not failed.item()

    @contextmanager
    def meet(self) -> Iterator[None]:
        """Context of what all processes do together and nobody compiles; raise Elsewhere where another one did not get here.

        An error in it becomes NotCompiled: the others wait in there and cannot be asked whether to do the step again.
        """
        if not self.all_fine(True):
            raise Elsewhere
        try:
            yield
        except Exception as error:
            raise NotCompiled from error

    def finish(self) -> None:
        """Take note of the last answers and wait until all processes are here."""
        if self.group is not None:
            self._answer()
            dist.barrier(self.group)

    def check_start(self, epoch: int, iteration: int, folder: str) -> None:
        """Raise MachineError when the processes would start in different iterations, which are read from `folder`."""
        if self.group is None:
            return
        own = torch.tensor([epoch, iteration])
        all_of_them = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(all_of_them, own, self.group)
        places = {tuple(place.tolist()) for place in all_of_them}
        if len(places) > 1:
            listed = ", ".join(f"epoch {e + 1} iteration {i + 1}" for e, i in sorted(places))
            raise MachineError(
                f"The processes would start in different places ({listed}): they do not see the same checkpoints in "
                f"{folder}. Put nnUNet_results on a file system that all nodes share, and start again."
            )
