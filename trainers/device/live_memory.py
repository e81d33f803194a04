"""Memory of tensors, counted while they live: on no device, or on any."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512  # bytes; torch's allocator for GPUs gives multiples of it


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all storages that were made while it is on and still live, in blocks of 512 bytes.

    Works on torch's fake tensors as on real ones. It can be left and entered again: what was made before still counts until
    it is gone. What one kernel takes and gives back within itself is not seen (`torch.distributed._tools.mem_tracker` counts
    likewise, by module, but one pass through a network only).

    now, peak: bytes. gradients: bytes of the gradients that the parameters have by now, see `watch`; gradients_at_peak: of
    those within `peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.gradients = self.gradients_at_peak = 0
        self._living: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._with_gradient: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.add(value)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is counted already."""
        storage = tensor.untyped_storage()
        number: int = storage._cdata  # of the storage itself; Python's objects of it come and go
        if number in self._living:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK

        def gone(_: object) -> None:
            self.now -= size
            del self._living[number]

        self._living[number] = weakref.ref(storage, gone)
        self.now += size
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self.gradients

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """From now on, notice the gradients of these parameters."""

        def arrived(parameter: Tensor) -> None:
            assert parameter.grad is not None
            if id(parameter) not in self._with_gradient:
                self._with_gradient.add(id(parameter))
                self.gradients += parameter.grad.nbytes

        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(arrived)

    def begin(self) -> None:
        """Look for a new peak; the gradients are gone."""
        self._with_gradient = set()
        self.gradients = self.gradients_at_peak = 0
        self.peak = self.now
