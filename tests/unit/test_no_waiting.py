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
from collections.abc import Sequence
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
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.trainers.data.augmentation import AffineParams
from nnunet_ssl.trainers.data.batches import Chunks
from nnunet_ssl.trainers.data.finishing import Box
from nnunet_ssl.trainers.data.packing import Packer, unpack
from nnunet_ssl.trainers.loop import stepping
from nnunet_ssl.views import rng
from nnunet_ssl.views.host import to_device
from nnunet_ssl.views.spec import Views

OWN = [m for m in method_names() if get_method(m).__module__.startswith("nnunet_ssl.")]
CASES = [(m, k) for m in OWN for k in ("unet", "primus") if k in get_method(m).backbones]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "mae": [{"mask_style": "grid"}, {"mask_style": "slices", "mask_ratio": (0.3, 0.8)}, {"normalise_target": True}],
    "spark3d": [{"mask_style": "slices"}],
    "simmim": [{"mask_ratio": (0.3, 0.8)}],
    "self_distillation": [{"centring": "sinkhorn"}],
}
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

    device = torch.device(GPU)  # type: ignore[assignment]

    def __new__(cls, device: Any, seed: int, images: range) -> Any:
        return super().__new__(cls, "cpu", seed, images)


class Asking(get_method("mae")):  # type: ignore[misc]
    """What a careless change may look like."""

    def prepare(self, batch: Any, generator: torch.Generator) -> Any:
        if batch["excluded"].any().item():
            warnings.warn("Some voxels are excluded.", stacklevel=2)
        return super().prepare(batch, generator)


@pytest.fixture
def method_class(request):
    return Asking if request.param == "asking" else get_method(request.param)


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


def step(make: Any, batch_of: Any, monkeypatch: pytest.MonkeyPatch, kind: str, parts: int = 1, **options: Any) -> None:
    """A training step, from a batch on the GPU to moved weights."""
    patch = (16, 24, 32)
    method = make(kind, patch, 2, **options).train()
    batch = batch_of(patch, 2, 4, **options)
    generator = OnGPU(GPU, 3, range(4))
    real = torch.Generator
    monkeypatch.setattr(rng, "ImageGenerator", OnGPU)
    monkeypatch.setattr(rng.torch, "Generator", lambda device=None: real())
    for module in (torch, stepping):  # a GPU of this kind knows no autocast
        monkeypatch.setattr(module, "autocast", lambda *_args, **_options: nullcontext())
    paths = drop_by_image(method)
    with RefusingConstants(), Refusing(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is too small")
        move(method)
        batch = {k: torch.empty(v.shape, dtype=v.dtype, device=GPU) for k, v in batch.items()}
        with torch.no_grad():
            inputs = method.prepare(batch, generator)
        assert all(v.device.type == GPU for v in inputs.values()), "a part of the inputs was left on the host"
        trainer = SimpleNamespace(
            method=method, network=method, encode=method.encode, compare=method.compare, grad_scaler=None,
            device=torch.device(GPU), drop_paths=paths,
        )  # fmt: skip
        inputs = {**inputs, stepping.IMAGE_KEYS: generator.keys}
        output = stepping.run_prepared(trainer, inputs, 4, parts, seed=1)
        trainer.optimizer, trainer.recipe = torch.optim.AdamW(method.parameters()), SimpleNamespace(max_norm=1.0)
        method.after_step(output.statistics, stepping.optimiser_step(trainer, output.loss))
    assert output.loss.shape == ()
    assert any(p.grad is not None for p in method.parameters())


@pytest.mark.parametrize(("method_class", "kind"), CASES, indirect=["method_class"])
def test_a_training_step_does_not_wait(method_class, kind, make, batch_of, monkeypatch):
    step(make, batch_of, monkeypatch, kind)


@pytest.mark.parametrize(
    ("method_class", "kind", "options"),
    [(m, k, o) for m, k in CASES for o in OPTIONS.get(m, [])],
    indirect=["method_class"],
)
def test_options_do_not_wait_either(method_class, kind, options, make, batch_of, monkeypatch):
    step(make, batch_of, monkeypatch, kind, **options)


@pytest.mark.parametrize(("method_class", "kind"), CASES, indirect=["method_class"])
def test_parts_of_a_batch_do_not_wait(method_class, kind, make, batch_of, monkeypatch):
    step(make, batch_of, monkeypatch, kind, parts=2)


BOXES = {
    "as they are": ((1, 8, 8, 8), None, ()),
    "mirrored": ((1, 8, 8, 8), None, (0, 2)),
    "scaled": ((1, 10, 10, 10), AffineParams((0.0, 0.0, 0.0), 1.3), (1,)),
    "rotated": ((1, 12, 13, 11), AffineParams((0.3, -0.2, 0.1), 1.0), (0,)),
    "both": ((1, 12, 13, 11), AffineParams((0.3, -0.2, 0.1), 1.2), (1, 2)),
    "in plane": ((1, 8, 13, 11), AffineParams((0.3, -0.2), 1.2), (0, 2)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("regions", [1, 2])
def test_finishing_a_batch_does_not_wait(regions, dtype):
    boxes = [
        Box(torch.zeros(shape, dtype=dtype), torch.ones(1, *shape[1:], dtype=torch.bool) if masked else None, *change)
        for shape, *change in BOXES.values()
        for masked in (False, True)
    ]
    keys = [{"boxes": boxes[i : i + regions], "key": str(i)} for i in range(0, len(boxes), regions)]
    half = len(keys) // 2
    with RefusingConstants(), Refusing():
        (batch,) = Chunks(len(keys), half).gather([Packer()(keys[:half]), Packer()(keys[half:])], torch.device(GPU))
        found = unpack(batch, Views((8, 8, 8), (8, 8, 8), regions))
    first = (len(keys), 2) if regions == 2 else (len(keys),)
    assert {k: (v.device.type, v.dtype, tuple(v.shape)) for k, v in found.items()} == {
        "image": (GPU, torch.float32, (*first, 1, 8, 8, 8)),
        "excluded": (GPU, torch.bool, (*first, 1, 8, 8, 8)),
    }


@pytest.mark.parametrize("method_class", ["asking"], indirect=True)
def test_one_question_is_found(method_class, make, batch_of, monkeypatch):
    with pytest.raises(Waiting, match="_local_scalar_dense"):
        step(make, batch_of, monkeypatch, "unet")


QUESTIONS = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "if": lambda x: bool((x > 0).any()),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "mask set": lambda x: x.__setitem__(x > 0, torch.ones(6, device=x.device)),
    "mask set to a value of the GPU": lambda x: x.__setitem__(x > 0, x.sum()),
    "mask filled with a value of the GPU": lambda x: x.masked_fill(x > 0, x.sum()),
    "rows filled with a value of the GPU": lambda x: x.index_fill(0, there(x, 2), x.sum()),
    "number set by index": lambda x: x.__setitem__((there(x, 2), there(x, 2)), True),
    "value of the host set by index": lambda x: x.index_put_((there(x, 2),), torch.tensor(1.0)),
    "number set at one place": lambda x: x.__setitem__((0, 1), 1.0),
    "row set to values of the host": lambda x: x.__setitem__(0, torch.ones(3)),
    "set by a list": lambda x: x.__setitem__([0, 1], x),
    "list": lambda x: x[[0, 1]],
    "array": lambda x: x[:, np.array([0, 2])],
    "index of the host": lambda x: x[torch.tensor([0, 1])],
    "index of one number": lambda x: x[there(x)],
    "where with a value of the host": lambda x: torch.where(x > 0, x, torch.tensor(1.0)),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "histogram": lambda x: x.histc(4),
    "one_hot": lambda x: nn.functional.one_hot(x.long()),
    "multinomial": lambda x: x.multinomial(1),
    "inverse": lambda x: torch.linalg.inv(x @ x.T),
    "size": lambda x: torch.full((2,), x.sum()),
    "repeat": lambda x: x.repeat_interleave(x[:, 0].long(), dim=0),
    "cpu": lambda x: x.cpu(),
    "copy": lambda x: torch.empty(2, 3).copy_(x),
    "to the GPU": lambda x: torch.tensor([1, 2], device=x.device),
    "to the GPU as array": lambda x: torch.asarray(1.0, device=x.device),
    "to the GPU later": lambda x: torch.as_tensor(np.ones(3)).to(x.device),
}


def there(x: Tensor, *shape: int) -> Tensor:
    """Whole numbers beside x."""
    return torch.zeros(shape, dtype=torch.int64, device=x.device)


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_kind_of_question_is_found(question):
    with RefusingConstants(), Refusing():
        x = torch.empty(2, 3, device=GPU)
        with pytest.raises(Waiting):
            QUESTIONS[question](x)


def test_what_is_queued_is_let_through():
    with RefusingConstants(), Refusing():
        x = torch.empty(2, 3, device=GPU)
        x += to_device(np.ones(3, dtype=np.float32), x.device)
        x += torch.tensor(1.0)  # a number in a tensor of the host goes along with the kernel
        x[x > 0] = 1
        x[0] = 1
        x[:, 1:] = 1
        x[there(x, 2)] = x
        x[0, 1] = x.sum()
        x.scatter_(1, there(x, 2, 1), 1)
        x.masked_fill_(x > 0, 0)
        x = torch.where(x > 0, x, 0.0) + x[there(x, 2), there(x, 2)].sum()
        x.index_copy_(0, to_device([0], x.device), x[1:])
        assert x.device.type == GPU
