"""The options of our tasks, and finishing a batch, ask a GPU for nothing; and `nnunet_ssl.testing.waiting` finds what would.

That a training step of every task does not, whole or in parts, is a part of the contract: tests/unit/test_every_method.py.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.testing.waiting import GPU, Refusing, RefusingConstants, Waiting, step_without_waiting
from nnunet_ssl.trainers.data.augmentation import AffineParams
from nnunet_ssl.trainers.data.batches import Chunks
from nnunet_ssl.trainers.data.finishing import Box
from nnunet_ssl.trainers.data.packing import Packer, unpack
from nnunet_ssl.views.host import to_device
from nnunet_ssl.views.spec import Views

PATCH = (16, 24, 32)
OWN = [m for m in method_names() if get_method(m).__module__.startswith("nnunet_ssl.")]
CASES = [(m, k) for m in OWN for k in ("unet", "primus") if k in get_method(m).backbones]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "mae": [{"mask_style": "grid"}, {"mask_style": "slices", "mask_ratio": (0.3, 0.8)}, {"normalise_target": True}],
    "spark3d": [{"mask_style": "slices"}],
    "simmim": [{"mask_ratio": (0.3, 0.8)}],
    "self_distillation": [{"centring": "sinkhorn"}],
}


class Asking(get_method("mae")):  # type: ignore[misc]
    """What a careless change may look like."""

    def prepare(self, batch: Any, generator: torch.Generator) -> Any:
        if batch["excluded"].any().item():
            warnings.warn("Some voxels are excluded.", stacklevel=2)
        return super().prepare(batch, generator)


@pytest.fixture
def method_class(request):
    return Asking if request.param == "asking" else get_method(request.param)


@pytest.mark.parametrize(
    ("method_class", "kind", "options"),
    [(m, k, o) for m, k in CASES for o in OPTIONS.get(m, [])],
    indirect=["method_class"],
)
def test_options_do_not_wait_either(method_class, kind, options, make, batch_of):
    step_without_waiting(make(kind, PATCH, 2, **options), batch_of(PATCH, 2, 4, **options))


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
def test_one_question_is_found(method_class, make, batch_of):
    with pytest.raises(Waiting, match="_local_scalar_dense"):
        step_without_waiting(make("unet", PATCH, 2), batch_of(PATCH, 2, 4))


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
