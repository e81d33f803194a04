"""Convolutions whose stride is their kernel, as matrix products: same values and gradients, and no memory that nobody wrote."""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dynamic_network_architectures.building_blocks.patch_encode_decode import PatchDecode, PatchEmbed
from torch import nn

from nnunet_ssl.backbones.bfloat16_conv3d import avoid_bfloat16_conv3d_bug
from nnunet_ssl.backbones.blockwise import compute_by_product, embed_blocks, is_blockwise, transpose_by_product
from nnunet_ssl.backbones.drop_path import ImageDropPath, drop_by_image
from nnunet_ssl.backbones.norms import keep_layout
from nnunet_ssl.backbones.recompute import recompute
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.trainers.loop import stepping
from nnunet_ssl.views.rng import ImageGenerator

OWN = [get_method(m) for m in method_names() if get_method(m).__module__.startswith("nnunet_ssl.")]
PAIRS = [(cls.name, kind) for cls in OWN for kind in cls.backbones]


def assert_same(module, twin, x, function=None):
    """Values, and gradients of the input and of all weights, of a module and its twin (or of a function of the twin)."""
    module.zero_grad()
    twin.zero_grad()
    given = [x.clone().requires_grad_() for _ in range(2)]
    expected, found = module(given[0]), (twin if function is None else lambda y: function(twin, y))(given[1])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    pairs = [(given[0].grad, given[1].grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(module.parameters(), twin.parameters(), strict=True)]
    for own, other in pairs:
        torch.testing.assert_close(other, own, rtol=1e-4, atol=1e-5 * own.abs().max().item())


EMBEDDINGS = [
    (nn.Conv3d(1, 6, 8, 8), (8, 16, 24)),
    (nn.Conv3d(2, 6, (4, 4, 8), (4, 4, 8)), (9, 15, 17)),  # rests at the ends of all axes, which nobody sees
    (nn.Conv3d(3, 5, (2, 1, 3), (2, 1, 3), bias=False), (4, 3, 3)),
    (nn.Conv2d(2, 6, 4, 4, padding="valid"), (8, 15)),
]
TRANSPOSED = [
    (nn.ConvTranspose3d(5, 7, (2, 1, 3), (2, 1, 3)), (3, 4, 5)),
    (nn.ConvTranspose3d(4, 1, 2, 2, bias=False), (1, 1, 1)),
    (nn.ConvTranspose2d(5, 7, (2, 3), (2, 3)), (3, 4)),
]


@pytest.mark.parametrize(("conv", "size"), EMBEDDINGS)
def test_embedding_is_the_convolution(conv, size):
    assert is_blockwise(conv)
    conv, x = copy.deepcopy(conv), torch.randn(2, conv.in_channels, *size)
    twin = copy.deepcopy(conv)
    compute_by_product(twin)
    assert_same(conv, twin, x)
    tokens = embed_blocks(conv, x)
    torch.testing.assert_close(tokens, conv(x).flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("conv", "size"), TRANSPOSED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_transposed_convolution(conv, size, layout):
    conv, x = copy.deepcopy(conv), torch.randn(2, conv.in_channels, *size)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)
    assert_same(conv, copy.deepcopy(conv), x, transpose_by_product)


@pytest.mark.parametrize(
    ("patch", "channels", "out"), [((8, 8, 8), 72, 3), ((8, 8, 4), 48, 1), ((2, 2, 2), 24, 2), ((4, 1, 2), 24, 1)]
)
def test_patch_decoder_is_that_of_convolutions(patch, channels, out):
    decoder = PatchDecode(patch, channels, out)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    twin = copy.deepcopy(decoder)
    compute_by_product(twin)
    assert "forward" in twin.__dict__
    assert list(twin.state_dict()) == list(decoder.state_dict())
    x = torch.randn(2, channels, 3, 4, 5)
    assert_same(decoder, twin, x)
    frugal = copy.deepcopy(twin)  # the copy's forward pass is over its own weights
    recompute(frugal)
    assert_same(twin, frugal, x)
    calls = []
    frugal.decode[0].register_forward_pre_hook(lambda *_: calls.append(1))
    twin.decode[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for module in (twin, frugal):
        module(x).sum().backward()
    assert len(calls) == 2 * (len(decoder.decode) > 1)  # stages are modules that are called, not taken to pieces


def test_other_convolutions_stay():
    others = [
        nn.Conv3d(2, 4, 3, 2),
        nn.Conv3d(2, 4, 2, 2, padding=1),
        nn.Conv3d(2, 4, 2, 2, groups=2),
        nn.Conv3d(2, 4, 2, 2, dilation=2),
        nn.Conv3d(2, 4, 1),
        nn.ConvTranspose3d(2, 4, 2, 2, output_padding=1),
        nn.ConvTranspose3d(2, 4, 3, 2),
        nn.Conv1d(2, 4, 2, 2),
    ]
    assert not any(map(is_blockwise, others))


def test_what_has_a_forward_pass_of_its_own_keeps_it():
    """As the layers of a sparse encoder, which would see what is hidden."""
    embed = PatchEmbed((8, 8, 8), 1, 6)
    own = embed.proj.forward = lambda x: x
    compute_by_product(embed)
    assert embed.proj.forward is own


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[1] == "primus"])
def test_no_convolution_of_this_kind_is_left_in_a_primus(name, kind, make):
    """Their kind reads what nobody wrote, on some CPUs."""
    method = make(kind, (32, 32, 32))
    compute_by_product(method)
    decoders = [network.up_projection for network in method.networks]
    within = {module for decoder in decoders for module in decoder.modules()}
    left = [n for n, m in method.named_modules() if is_blockwise(m) and m not in within and "forward" not in m.__dict__]
    assert left == []
    assert all("forward" in decoder.__dict__ for decoder in decoders)


@pytest.fixture
def method_class(request):
    """The method that the test's parameters name."""
    return get_method(request.getfixturevalue("name") if "name" in request.fixturenames else "mae")


def test_decoder_is_given_a_contiguous_map(make):
    """The transposed view of tokens looks like channels_last, and a compiler expects the decoder's gradients to be so too."""
    backbone = make("primus", (16, 24, 16)).backbone
    seen = []
    backbone.network.up_projection.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    image = torch.randn(2, 1, 16, 24, 16)
    backbone(image)
    backbone.decode([backbone.to_map(backbone.encode(backbone.embed(image)))])
    assert [m.shape for m in seen] == [(2, 72, 2, 3, 2)] * 2
    for feature_map in (*seen, *backbone.features(image)):
        assert feature_map.stride() == (72 * 12, 12, 6, 2, 1)


THIN = (16, 24, 8)  # one token along the last axis
THIN_CROPS: dict[str, Any] = {
    "voco": {"crop_size": (16, 16, 8), "grid": (2, 2, 1)},
    "simclr": {"crop_size": (16, 16, 8)},
    "consistent_views": {"crop_size": (16, 16, 8)},
    "self_distillation": {"crop_size": (16, 16, 8)},
}
IMAGES = 2
SIZES = [4 * 2**n for n in range(3, 18)] + [4 * 3 * 2**n for n in range(3, 17)]


def fill_the_allocator():
    """Freed memory of many sizes is full of NaN; small blocks between keep it from being given back."""
    kept = []
    for size in SIZES:
        blocks = []
        for _ in range(8):
            blocks.append(torch.full((size // 2,), math.nan, dtype=torch.bfloat16))
            kept.append(torch.zeros(1))
        del blocks
    return kept


@contextmanager
def deterministic_filling():
    """torch fills what it takes with NaN itself; not what its libraries take."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


def test_filling_works():
    kept = fill_the_allocator()
    assert sum(torch.empty(size // 4).isnan().any().item() for size in SIZES) > len(SIZES) / 2
    del kept
    with deterministic_filling():
        assert torch.empty(5).isnan().all()


def step(method, batch, monkeypatch):
    """(loss, gradients) of a training step in bfloat16, as on a CPU that computes it."""
    generator = ImageGenerator("cpu", 5, range(IMAGES))
    method.zero_grad()
    with torch.no_grad():
        inputs = method.prepare(batch, generator)
    paths = [m for m in method.modules() if isinstance(m, ImageDropPath)]
    trainer = SimpleNamespace(
        method=method, network=method, encode=method.encode, compare=method.compare, drop_paths=paths,
        device=torch.device("cpu"), grad_scaler=None,
    )  # fmt: skip
    monkeypatch.setattr(stepping, "autocast", lambda _: torch.autocast("cpu", torch.bfloat16))
    output = stepping.run_prepared(trainer, {**inputs, stepping.IMAGE_KEYS: generator.keys}, IMAGES, 1, seed=3)
    return output.loss, {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "kind"), PAIRS)
@pytest.mark.filterwarnings("ignore:.*is too small", "ignore:.*deterministic")
def test_steps_on_thin_volumes_read_nothing_that_nobody_wrote(name, kind, make, batch_of, monkeypatch):
    config, patch = THIN_CROPS.get(name, {}), (32, 32, 8) if name == "voco" else THIN
    method = make(kind, patch, **config).train()
    compute_by_product(method)
    keep_layout(method)
    drop_by_image(method)
    avoid_bfloat16_conv3d_bug(method)
    batch = batch_of(patch, 1, IMAGES, **config)
    loss, gradients = step(method, batch, monkeypatch)
    for number in range(3):
        kept = fill_the_allocator()
        with deterministic_filling() if number == 2 else torch.enable_grad():
            again, others = step(method, batch, monkeypatch)
        del kept
        assert again.isfinite()
        torch.testing.assert_close(again, loss, rtol=1e-3, atol=0)
        assert set(others) == set(gradients)
        scale = max(g.abs().max() for g in gradients.values()).item()
        for key, gradient in gradients.items():
            assert others[key].isfinite().all(), key
            torch.testing.assert_close(others[key], gradient, rtol=0, atol=1e-3 * scale, msg=key)
