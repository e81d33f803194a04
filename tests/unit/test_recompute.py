"""Activations computed again in the backward pass: the same loss, the same gradients, less memory."""

from __future__ import annotations

import copy
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointError

from nnunet_ssl.backbones.bfloat16_conv3d import avoid_bfloat16_conv3d_bug
from nnunet_ssl.backbones.blockwise import compute_by_product
from nnunet_ssl.backbones.drop_path import ImageDropPath, drop_by_image
from nnunet_ssl.backbones.norms import keep_layout
from nnunet_ssl.backbones.recompute import recompute
from nnunet_ssl.methods import get_method
from nnunet_ssl.trainers.loop import stepping
from nnunet_ssl.views.rng import ImageGenerator

IMAGES = 4
PAIRS = [  # method, network, parts, peak of memory against that without, at most
    ("mae", "unet", 1, 0.8),
    ("mae", "plain", 1, 0.9),
    ("mae", "primus", 2, 0.9),  # stochastic depth: whose keys are others in the second part
    ("spark3d", "unet", 2, 0.8),  # hidden positions are told beside the arguments
    ("simclr", "unet", 2, 0.9),  # encoded twice
    ("simclr", "primus", 1, 0.9),
    ("consistent_views", "unet", 1, 0.9),  # a hook on the decoder
    ("self_distillation", "primus", 2, 0.95),  # a teacher that keeps nothing in any case
]


@pytest.fixture
def method_class(request):
    """The method that the test's parameters name."""
    return get_method(request.getfixturevalue("name") if "name" in request.fixturenames else "mae")


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.most = max(self.most, self.now)
        return outputs

    def _gone(self, size: int) -> None:
        self.now -= size


def step(method, batch, parts, half=True):
    """(loss, gradients, peak in bytes) of one training step."""
    generator = ImageGenerator("cpu", 5, range(IMAGES))
    with torch.no_grad():
        inputs = method.prepare(batch, generator)
    paths = [m for m in method.modules() if isinstance(m, ImageDropPath)]
    trainer = SimpleNamespace(
        method=method, network=method, encode=method.encode, compare=method.compare, drop_paths=paths,
        device=torch.device("cpu"), grad_scaler=None,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, Peak() as peak:
        patch.setattr(stepping, "autocast", lambda _: torch.autocast("cpu", torch.bfloat16, enabled=half))
        output = stepping.run_prepared(trainer, {**inputs, stepping.IMAGE_KEYS: generator.keys}, IMAGES, parts, seed=3)
    return output.loss, {n: p.grad for n, p in method.named_parameters() if p.grad is not None}, peak.most


@pytest.fixture
def pair(make):
    """Function (kind, **config) -> a method as a trainer on a CPU makes it ready, and a copy of it that recomputes."""

    def build(kind, **config):
        method = make(kind, **config).train()
        if kind == "primus":  # the tiny network of the other tests drops nothing
            from timm.layers import DropPath

            for block in method.backbone.network.eva.blocks:
                block.drop_path1, block.drop_path2 = DropPath(0.4), DropPath(0.4)
        compute_by_product(method)
        keep_layout(method)
        drop_by_image(method)
        avoid_bfloat16_conv3d_bug(method)
        frugal = copy.deepcopy(method)
        recompute(frugal, frugal.recomputing)
        return method, frugal

    return build


@pytest.mark.parametrize(("name", "kind", "parts", "share"), PAIRS)
@pytest.mark.filterwarnings("ignore:.*is too small")
def test_same_step_with_less_memory(name, kind, parts, share, pair, batch_of):
    method, frugal = pair(kind)
    assert list(frugal.state_dict()) == list(method.state_dict())
    assert [type(m) for m in frugal.modules()] == [type(m) for m in method.modules()]
    batch = batch_of(None, 1, IMAGES)
    (loss, gradients, before), (again, others, after) = (step(m, batch, parts) for m in (method, frugal))
    assert torch.equal(again, loss)
    assert set(others) == set(gradients)
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-6, atol=0, msg=lambda text, key=key: f"{key}: {text}")
    assert after < share * before


@pytest.mark.parametrize("half", [False, True])
def test_thin_maps_stay_in_float32_when_they_are_computed_again(half, pair, batch_of):
    method, frugal = pair("unet", patch=(8, 16, 16))  # two voxels at the bottleneck, where kernels have three
    batch = batch_of((8, 16, 16), 1, IMAGES)
    (loss, gradients, _), (again, others, _) = (step(m, batch, 1, half) for m in (method, frugal))
    assert torch.equal(again, loss)
    assert all(torch.equal(others[k], g) for k, g in gradients.items())


def test_dropout_drops_the_same_again(pair, batch_of):
    method, frugal = pair("primus")
    for module in (*method.modules(), *frugal.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    batch = batch_of(None, 1, IMAGES)
    (loss, gradients, _), (again, others, _) = (step(m, batch, 1) for m in (method, frugal))
    assert torch.equal(again, loss)
    assert all(torch.equal(others[k], g) for k, g in gradients.items())


@pytest.mark.parametrize("name", ["spark3d"])
def test_without_its_context_a_sparse_encoder_would_be_computed_densely(name, make, batch_of):
    """So the equality above is no accident; torch notices that other tensors come out."""
    forgetful = make("unet").train()
    recompute(forgetful)
    with pytest.raises(CheckpointError):
        step(forgetful, batch_of(None, 1, IMAGES), 1)


def test_evaluation_is_the_same(pair, batch_of, prepared):
    method, frugal = pair("unet")
    inputs = prepared(method, batch_of())
    with torch.no_grad():
        assert torch.equal(frugal(inputs).loss, method(inputs).loss)


def test_deepcopy_of_what_recomputes_is_its_own(pair, batch_of, prepared):
    _, frugal = pair("unet")
    inputs = prepared(frugal, batch_of())
    before, twin = frugal(inputs).loss, copy.deepcopy(frugal)
    with torch.no_grad():
        for parameter in frugal.parameters():
            parameter.zero_()
    assert torch.equal(twin(inputs).loss, before)
