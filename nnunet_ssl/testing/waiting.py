"""Nothing between a batch and its gradients asks a GPU for an answer: the host would have to wait for all it has queued.

No GPU is needed for that: torch's meta device, which knows shapes and no values, plays it. Every operator on its tensors
that a GPU answers with a value, or with a shape that depends on values, is refused, and so is every copy to the host, or
from it if it is waited for. What lies on the host is not concerned.

Some copies are easily overlooked. A value that is set by index becomes a tensor of the host, whatever the value was. Filling
what a mask hides, or a slice, reads it there; setting single places copies it to the GPU first, and that copy is waited for:
`x[rows, columns] = 1` waits, `x[mask] = 1`, `x[2:] = 1`, `x.scatter_(1, columns, 1)` do not. Places that are given as a list
are copied likewise. torch treats its meta device differently there, so `RefusingConstants` does what it does for CUDA.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_ssl.backbones.drop_path import drop_by_image
from nnunet_ssl.methods.base import Method
from nnunet_ssl.trainers.loop import stepping
from nnunet_ssl.views import rng

GPU = "meta"
WAITING = (
    "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_numpy", "masked_select", "_unique",
    "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc", "repeat_interleave", "multinomial",
    "_linalg_check_errors",
)  # fmt: skip
READ = {"masked_fill": 2, "masked_fill_": 2, "index_fill": 3, "index_fill_": 3}  # which argument they read as a number
MASKS = (torch.bool, torch.uint8)


class Waiting(AssertionError):
    """The host would wait for the GPU."""


def lies_on_gpu(x: Any) -> bool:
    """Whether this is a tensor of the stand-in."""
    return isinstance(x, Tensor) and x.device.type == GPU


class Refusing(TorchDispatchMode):
    """Refuses operators that are answered by the GPU, and copies between host and GPU that are waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in WAITING and any(lies_on_gpu(x) for x in args):
            raise Waiting(f"{func}, shapes {[tuple(x.shape) for x in args if isinstance(x, Tensor)]}")
        if name in READ and lies_on_gpu(args[0]) and lies_on_gpu(args[READ[name]]):
            raise Waiting(f"{func} of a value on the GPU")
        if name == "where" and any(map(lies_on_gpu, args)) and not all(map(lies_on_gpu, args)):
            raise Waiting(f"{func} with a value on the host")
        if name in ("index", "index_put", "index_put_") and lies_on_gpu(args[0]):
            places = [i for i in args[1] if i is not None]
            host_value = name != "index" and not lies_on_gpu(args[2])
            masks = [i.dtype in MASKS for i in places]
            if not all(map(lies_on_gpu, places)):
                raise Waiting(f"{func} at places on the host")
            if any(masks) and not (host_value and all(masks)):  # one value for all needs no list of places
                raise Waiting(f"{func} with a mask")
            if host_value and not all(masks):
                raise Waiting(f"{func} of a value on the host")
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            target = torch.device(kwargs.get("device") or source.device) if name == "_to_copy" else args[0].device
            queued = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            to_host = source.device.type == GPU and target.type != GPU
            if to_host or (source.device.type != target.type == GPU and not queued):
                raise Waiting(f"{func} from {source.device} to {target}, shape {tuple(source.shape)}")
        return func(*args, **kwargs)


class RefusingConstants(TorchFunctionMode):
    """Refuses tensors made on the GPU from numbers of the host: that copy is always waited for.

    Numbers that are set by index, and lists of places, become tensors of the host first, as they do for CUDA.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.__getitem__, Tensor.__setitem__) and lies_on_gpu(args[0]):
            image, place, *value = args
            place = tuple(map(on_host, place)) if isinstance(place, tuple) else on_host(place)
            args = (image, place, *(v if isinstance(v, Tensor) else torch.tensor(v, dtype=image.dtype) for v in value))
        made = func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") is not None
        if (made and torch.device(kwargs["device"]).type == GPU) or (
            func is Tensor.new_tensor and lies_on_gpu(args[0])
        ):
            raise Waiting(f"{func} of {args[-1]}")
        return func(*args, **kwargs)


def on_host(place: Any) -> Any:
    """A list of places as the tensor of the host that torch makes of it; anything else as it is."""
    return torch.as_tensor(place) if isinstance(place, (Sequence, np.ndarray)) else place


class OnGPU(rng.ImageGenerator):
    """An image generator whose numbers are wanted on a GPU; a real one would need the GPU."""

    device = torch.device(GPU)

    def __new__(cls, device: Any, seed: int, images: range) -> Any:
        return super().__new__(cls, "cpu", seed, images)


def move(module: nn.Module) -> None:
    """Replace all weights and buffers by ones on the GPU."""
    moved: dict[int, Any] = {}
    for part in module.modules():
        for own, wrap in ((part._parameters, nn.Parameter), (part._buffers, lambda x, requires_grad: x)):
            for name, value in own.items():
                if value is not None:
                    if id(value) not in moved:
                        there = torch.empty(value.shape, dtype=value.dtype, device=GPU)
                        moved[id(value)] = wrap(there, requires_grad=value.requires_grad)
                    own[name] = moved[id(value)]


def step_without_waiting(method: Method, batch: Mapping[str, Tensor], parts: int = 1) -> None:
    """A training step, from a batch to moved weights, on the stand-in for a GPU, to which both are moved.

    Raises Waiting where the host would wait; parts: in which the batch goes through the network.
    """
    method.train()
    images = len(batch["image"])
    generator: Any = OnGPU(GPU, 3, range(images))
    real = torch.Generator
    paths = drop_by_image(method)
    with pytest.MonkeyPatch.context() as patch, RefusingConstants(), Refusing(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is too small")
        patch.setattr(rng, "ImageGenerator", OnGPU)
        patch.setattr(torch, "Generator", lambda device=None: real())
        for module in (torch, stepping):  # a GPU of this kind knows no autocast
            patch.setattr(module, "autocast", lambda *_args, **_options: nullcontext())
        move(method)
        there = {k: torch.empty(v.shape, dtype=v.dtype, device=GPU) for k, v in batch.items()}
        with torch.no_grad():
            inputs = method.prepare(there, generator)
        assert all(v.device.type == GPU for v in inputs.values()), "a part of the inputs was left on the host"
        trainer: Any = SimpleNamespace(
            method=method, network=method, encode=method.encode, compare=method.compare, grad_scaler=None,
            device=torch.device(GPU), drop_paths=paths,
        )  # fmt: skip
        inputs = {**inputs, stepping.IMAGE_KEYS: generator.keys}
        output = stepping.run_prepared(trainer, inputs, images, parts, seed=1)
        trainer.optimizer, trainer.recipe = torch.optim.AdamW(method.parameters()), SimpleNamespace(max_norm=1.0)
        method.after_step(output.statistics, stepping.optimiser_step(trainer, output.loss))
    assert output.loss.shape == ()
    assert any(p.grad is not None for p in method.parameters())
