"""U-Nets in channels_last, compiled: outputs and gradients of the plain network, within rounding."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.backbones.blockwise import compute_by_product
from nnunet_ssl.backbones.channels_last import convolve_pairs, leave_biases_out, to_channels_last, use_channels_last
from nnunet_ssl.backbones.norms import keep_layout
from nnunet_ssl.backbones.sparse import HiddenPositions
from nnunet_ssl.backbones.unmeasured import VARIABLE
from nnunet_ssl.methods import get_method
from nnunet_ssl.recipes import PRETRAINING, build_optimizer
from nnunet_ssl.trainers.loop.state import contiguous
from nnunet_ssl.views.masks import upsample_mask

KINDS = {2: (nn.Conv2d, nn.InstanceNorm2d), 3: (nn.Conv3d, nn.InstanceNorm3d)}
INDUCTOR = pytest.param("inductor", marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def build(plain=False, axes=3, out=2, channels=1, dropout=False):
    """A tiny U-Net of three stages; the first one has few channels, the others come by odd ways to their size."""
    conv, norm = KINDS[axes]
    torch.manual_seed(0)
    drop = (nn.Dropout3d, {"p": 0.0}) if dropout else (None, None)
    network = (PlainConvUNet if plain else ResidualEncoderUNet)(
        channels, 3, [8, 16, 40], conv, 3, [1, 2, [1] * (axes - 1) + [2]], 1, out, [1, 1], True, norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, dropout_op=drop[0], dropout_op_kwargs=drop[1],
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=False,
    )  # fmt: skip
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.3)
    return network


def as_on_a_gpu(network):
    """A copy of a network as trainers/loop/building.py makes it ready for being compiled for a GPU."""
    twin = copy.deepcopy(network)
    compute_by_product(twin)
    use_channels_last(twin)
    keep_layout(twin)
    leave_biases_out(twin)
    return twin


def biases_before_norms(network):
    """Names of all biases that a norm takes away again."""
    blocks = [(n, m) for n, m in network.named_modules() if hasattr(m, "conv") and hasattr(m, "norm")]
    return {f"{name}.conv.bias" for name, _ in blocks}


def gradients_of(network, function, x, half=False):
    network.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = function(x)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output.float() * weights).sum().backward()
    return output.detach(), {
        "image": x.grad,
        **{n: p.grad for n, p in network.named_parameters() if p.grad is not None},
    }


CASES = [  # plain, axes, outputs, images, size; the last axis is halved twice
    (False, 3, 2, 2, (4, 6, 8)),
    (False, 3, 1, 1, (2, 4, 12)),
    (True, 3, 3, 1, (4, 6, 20)),
    (False, 2, 9, 2, (6, 12)),
    (True, 2, 1, 3, (4, 28)),
]


@pytest.mark.parametrize("pairs", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize(("plain", "axes", "out", "images", "size"), CASES)
def test_compiled_it_is_the_plain_network(backend, plain, axes, out, images, size, pairs, monkeypatch):
    monkeypatch.setenv(VARIABLE, "pairs" if pairs else "")
    network = build(plain, axes, out)
    twin = as_on_a_gpu(network)
    assert list(twin.state_dict()) == list(network.state_dict())
    x = torch.randn(images, 1, *size, generator=torch.Generator().manual_seed(0))
    expected, gradients = gradients_of(network, network, x)
    found, others = gradients_of(twin, torch.compile(twin, backend=backend, fullgraph=True), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert set(others) == set(gradients)
    scale = max(g.abs().max() for n, g in gradients.items() if n != "image").item()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)
    silent = biases_before_norms(network) & set(gradients)
    assert len(silent) > 4
    assert all(not others[name].any() for name in silent)
    assert all(others[name].any() for name in set(others) - silent if name.endswith("bias"))


@pytest.mark.parametrize("plain", [False, True])
def test_not_compiled_nothing_is_another(plain):
    network = build(plain)
    twin = as_on_a_gpu(network)
    x = torch.randn(2, 1, 4, 6, 8)
    (expected, gradients), (found, others) = gradients_of(network, network, x), gradients_of(twin, twin, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert set(others) == set(gradients)
    for name in set(gradients) - biases_before_norms(network):
        torch.testing.assert_close(
            others[name], gradients[name], rtol=1e-3, atol=1e-4 * gradients[name].abs().max().item()
        )


def test_in_half_precision():
    """As near to float32 as the plain network in half precision is."""
    network = build()
    twin = as_on_a_gpu(network)
    x = torch.randn(2, 1, 8, 12, 16, generator=torch.Generator().manual_seed(0))
    expected, gradients = gradients_of(network, network, x)
    gradients = {n: g.clone() for n, g in gradients.items()}
    plain, plains = gradients_of(network, network, x, half=True)
    found, others = gradients_of(twin, torch.compile(twin, backend="aot_eager", fullgraph=True), x, half=True)
    assert found.dtype == plain.dtype
    assert (found - expected).abs().max() < 2 * (plain - expected).abs().max()
    for name in set(gradients) - biases_before_norms(network):
        apart, allowed = ((g[name] - gradients[name]).norm() / gradients[name].norm() for g in (others, plains))
        assert apart < 1.5 * allowed + 0.02, name


def test_dropout_between_convolution_and_norm_keeps_the_bias():
    network = build(dropout=True)
    twin = as_on_a_gpu(network)
    x = torch.randn(2, 1, 4, 6, 8)
    expected, found = network(x), torch.compile(twin, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    dropping = [m for m in twin.modules() if getattr(m, "dropout", None) is not None]
    assert dropping
    assert not any(getattr(m.norm, "unseen", ()) for m in dropping)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_pairs_of_voxels_are_the_convolution(axes, bias):
    """All sizes of the last axis, odd ones too; inputs in either layout; values and gradients."""
    conv = KINDS[axes][0](8, 6, 3, padding=1, bias=bias)
    for width, images, last in itertools.product(range(1, 9), (1, 2), (True, False)):
        x = torch.randn(images, 8, *(3, 2)[: axes - 1], width)
        x = to_channels_last(x) if last else x
        given = [x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
        results = [function(y) for function, y in zip((conv, lambda y: convolve_pairs(conv, y)), given, strict=True)]
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
        weights, wanted = torch.randn(results[0].shape), list(conv.parameters())
        own, other = (
            torch.autograd.grad((r * weights).sum(), [y, *wanted]) for r, y in zip(results, given, strict=True)
        )
        for one, two in zip(own, other, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axes", [2, 3])
def test_everything_lies_in_channels_last(axes):
    """Weights, and what every convolution is given in compiled code and gives."""
    twin, seen = as_on_a_gpu(build(axes=axes)), []
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[axes]
    assert all(p.is_contiguous(memory_format=layout) for p in twin.parameters() if p.ndim == axes + 2)

    class Note(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):
            result = super().call_function(target, args, kwargs)
            if "aten.convolution.default" in str(target):
                voxels = args[1][0, 0].numel()  # of the kernel; a CPU does with those of one as it likes
                seen.extend([args[0], result] if voxels > 1 else [args[0]])
            return result

    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(lambda *inputs: Note(graph).run(*inputs)))
    torch.compile(twin, backend=backend, fullgraph=True)(torch.randn(2, 1, *(8, 12, 16)[-axes:]))
    assert len(seen) > 10
    assert [(x.shape, x.stride()) for x in seen if not x.is_contiguous(memory_format=layout)] == []


def ready(make_last):
    """Spark3D around a tiny U-Net as trainers/loop/building.py makes it."""
    cls = get_method("spark3d")
    config = cls.Config()
    views = cls.views(config, (8, 12, 16))
    conv, norm = KINDS[3]
    torch.manual_seed(0)
    network = ResidualEncoderUNet(
        1, 3, [8, 16, 24], conv, 3, [1, 2, 2], 1, cls.output_channels(config, 1), [1, 1], True, norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )  # fmt: skip
    backbone = wrap_network(network, views.network_size, cls.crop_setting)
    compute_by_product(network)
    if make_last:
        use_channels_last(network)
    method = cls(backbone, config)
    keep_layout(method)
    if make_last:
        leave_biases_out(method)
    return method


@pytest.mark.parametrize("pairs", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_sparse_encoder_masks_in_channels_last(backend, pairs, monkeypatch):
    monkeypatch.setenv(VARIABLE, "pairs" if pairs else "")
    method, twin = ready(False), ready(True)
    twin.load_state_dict(method.state_dict())
    batch = {"image": torch.randn(2, 1, 8, 12, 16), "excluded": torch.zeros(2, 1, 8, 12, 16, dtype=torch.bool)}
    with torch.no_grad():
        inputs = method.prepare(batch, torch.Generator().manual_seed(0))
    expected = method(inputs)
    expected.loss.backward()
    found = torch.compile(twin, backend=backend, fullgraph=True)(inputs)
    found.loss.backward()
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
    own, others = ({n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in (method, twin))
    assert set(own) == set(others)
    scale = max(g.abs().max() for g in own.values()).item()
    for name, gradient in own.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)
    cells = torch.rand(2, 2, 3, 4) < 0.5
    hidden = upsample_mask(cells, (4, 4, 4), (8, 12, 16))
    image = batch["image"].masked_fill(hidden, 0)
    maps = method.sparse(image, HiddenPositions(cells))
    encode = torch.compile(lambda x, c: twin.sparse(x, HiddenPositions(c)), backend=backend, fullgraph=True)
    for level, (one, other) in enumerate(zip(maps, encode(image, cells), strict=True)):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
        factors = [n // c for n, c in zip(one.shape[2:], cells.shape[1:], strict=True)]
        assert not other.masked_select(upsample_mask(cells, factors, one.shape[2:])).any(), level
    dense = twin.backbone.features(image)
    assert not torch.allclose(dense[-1], maps[-1])


def test_a_run_goes_on_in_the_other_layout():
    """Checkpoints of a GPU's run are contiguous, and continue on a CPU and the other way round."""
    network = build()
    twin = as_on_a_gpu(network)
    recipe = PRETRAINING["unet"]
    optimizers = [build_optimizer([p for p in m.parameters() if p.requires_grad], recipe) for m in (network, twin)]
    x = torch.randn(2, 1, 4, 6, 8)

    def train(number):
        module, optimizer = (network, twin)[number], optimizers[number]
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()

    for source, target in ((1, 0), (0, 1)):
        train(source)
        file = io.BytesIO()
        modules = (network, twin)
        torch.save([contiguous(m.state_dict()) for m in (modules[source], optimizers[source])], file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        assert all(w.is_contiguous() for w in weights.values())
        assert all(v.is_contiguous() for s in state["state"].values() for v in s.values())
        modules[target].load_state_dict(weights)
        optimizers[target].load_state_dict(state)
        train(source)
        train(target)
        for one, other in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
