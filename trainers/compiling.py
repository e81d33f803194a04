"""torch.compile where it works, and the same training without it where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

VARIABLE = "nnUNet_compile"


class Compiler:
    """Compiles functions when they are first called; where that fails, they and all others run as they are from then on.

    A compiler fails before it has run anything. So what failed is simply called again, nothing happens twice, and of
    processes that share a batch one alone may fail.

    on: whether to compile at all. log: is told in one line why it failed. recompute: whether blocks are computed again in
    the backward pass. options: of torch.compile.
    """

    def __init__(self, on: bool, log: Callable[[str], object], recompute: bool = False, **options: Any) -> None:
        self.on, self.log, self.options = on, log, options
        if not on:
            return
        functorch: Any = torch._functorch.config
        if hasattr(functorch, "force_non_lazy_backward_lowering"):
            # The backward pass is compiled together with the forward pass, so that it cannot fail half-way.
            functorch.force_non_lazy_backward_lowering = True
        if recompute:
            # torch cuts compiled code at the borders of DDP's buckets, but cannot where blocks are recomputed.
            torch._dynamo.config.optimize_ddp = False

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled as long as that works."""
        if not self.on:
            return function
        compiled = torch.compile(function, **self.options)

        def call(*inputs: Any, **options: Any) -> Any:
            if self.on:
                try:
                    return compiled(*inputs, **options)
                except TorchDynamoException as error:
                    self._give_up(error)
            return function(*inputs, **options)

        return call

    def compile_forward(self, module: nn.Module) -> None:
        """Compile what a module does when it is called, but not its hooks; the module stays what and where it is."""
        if self.on:
            module.forward = self(module.forward)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """For the time of the context, everything runs as it is."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    def _give_up(self, error: TorchDynamoException) -> None:
        self.on = False
        self.log(
            f"WARNING: torch.compile failed ({cause(error)}). The training goes on without it: the same result, only "
            f"slower. To leave it out from the start: export {VARIABLE}=0"
        )


def cause(error: BaseException) -> str:
    """Type and first line of the error behind one of torch.compile."""
    seen = {error}
    while (inner := getattr(error, "inner_exception", None) or error.__cause__) is not None and inner not in seen:
        error = inner
        seen.add(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
