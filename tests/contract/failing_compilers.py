"""Back ends of torch.compile that fail in every way that compiled code can."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from nnunet_ssl.trainers.loop import epochs
from nnunet_ssl.trainers.ssl_trainer import SSLTrainer


def fine(graph: Any, _inputs: Any) -> Callable[..., Any]:
    """Runs the graph as it is."""
    return make_boxed_func(graph.forward)


def cannot_compile(_graph: Any, _inputs: Any) -> Callable[..., Any]:
    """As without a C compiler."""
    raise FileNotFoundError("g++: no such file\nand a page of advice")


def cannot_run(graph: Any, _inputs: Any) -> Callable[..., Any]:
    """Computes everything, and then raises: whatever was drawn at random is drawn."""

    def run(*inputs: Any) -> Any:
        graph.forward(*inputs)
        raise RuntimeError("Triton Error: out of resources\nand a page of advice")

    return make_boxed_func(run)


def wrong_strides(graph: Any, inputs: Any) -> Callable[..., Any]:
    """Insists on strides that its first large input does not have, as code does that was made for another layout."""

    def run(*given: Any) -> Any:
        image = max((t for t in given if isinstance(t, torch.Tensor)), key=lambda t: t.ndim)
        torch._C._dynamo.guards.assert_size_stride(image, tuple(image.shape), tuple(7 + s for s in image.stride()))
        return graph.forward(*given)

    return make_boxed_func(run)


def held_out(graph: Any, _inputs: Any) -> Callable[..., Any]:
    """Raises where no gradients are wanted."""

    def run(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            raise RuntimeError("Triton Error: out of resources\nand a page of advice")
        return graph.forward(*inputs)

    return run


BACKENDS = {
    "none": "eager",
    "compiling": cannot_compile,
    "forward": aot_autograd(fw_compiler=cannot_run, bw_compiler=fine),
    "backward": aot_autograd(fw_compiler=fine, bw_compiler=cannot_run),
    "strides": aot_autograd(fw_compiler=fine, bw_compiler=wrong_strides),
    "held-out": held_out,
}
REASONS = {
    "compiling": "FileNotFoundError: g++: no such file",
    "forward": "RuntimeError: Triton Error: out of resources",
    "backward": "RuntimeError: Triton Error: out of resources",
    "strides": "AssertionError: expected size",
    "held-out": "RuntimeError: Triton Error: out of resources",
}


@contextmanager
def compiling(failure: str | None) -> Any:
    """For the time of the context trainers compile on CPUs too, with the back end that fails so; None: they do not compile."""
    real = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "draw_epoch", lambda *_: None)  # pictures would take longer than the epochs
        if failure is not None:
            patch.setattr(SSLTrainer, "_do_i_compile", lambda _: True)
            patch.setattr(torch, "compile", lambda function, **_: real(function, backend=BACKENDS[failure]))
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()
