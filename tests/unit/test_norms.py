"""Instance norms whose output is no view: torch's results, without copies in the backward pass, in the layout they are given."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nnunet_ssl.backbones.norms import InstanceNorm2d, InstanceNorm3d, keep_layout

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
KINDS = {2: (nn.Conv2d, nn.InstanceNorm2d), 3: (nn.Conv3d, nn.InstanceNorm3d)}
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network(axes=3, affine=True):
    """Two blocks as in nnU-Net's networks: the LeakyReLU changes what the norm returns."""
    conv, norm = KINDS[axes]
    torch.manual_seed(0)
    module = nn.Sequential(
        conv(1, 8, 3, padding=1), norm(8, affine=affine), nn.LeakyReLU(inplace=True),
        conv(8, 8, 3, padding=1), norm(8, eps=1e-3, affine=affine), nn.LeakyReLU(inplace=True),
    )  # fmt: skip
    for part in module:
        if isinstance(part, norm) and affine:
            nn.init.normal_(part.weight, 1, 0.3)
            nn.init.normal_(part.bias)
    return module


def image(axes=3, number=2):
    return torch.randn(number, 1, *(6, 8, 9)[:axes], generator=torch.Generator().manual_seed(0))


def step(module, function, x, half=False):
    """(output, gradients of image and weights) of a training step."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = function(x)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output.float() * weights).sum().backward()
    return output.detach(), [x.grad, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("number", [1, 3])
def test_the_same_bits(axes, affine, half, number):
    module = network(axes, affine)
    twin = copy.deepcopy(module)
    keep_layout(twin)
    assert [type(m) for m in twin] != [type(m) for m in module]
    assert list(twin.state_dict()) == list(module.state_dict())
    expected, gradients = step(module, module, image(axes, number), half)
    found, others = step(twin, twin, image(axes, number), half)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert all(map(torch.equal, others, gradients))
    module.eval()
    twin.eval()
    assert torch.equal(twin(image(axes)), module(image(axes)))


def names_of_backward(output):
    """Names of all functions of the backward pass."""
    found, waiting = set(), [output.grad_fn]
    while waiting:
        function = waiting.pop()
        if function is not None and function not in found:
            found.add(function)
            waiting += [following for following, _ in function.next_functions]
    return " ".join(function.name() for function in found)


def test_nothing_is_copied_for_the_change_in_place():
    module = network()
    assert "CopySlices" in names_of_backward(module(image()))  # what this is all about
    keep_layout(module)
    assert "CopySlices" not in names_of_backward(module(image()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_compiled_within_rounding_and_in_its_layout(backend, axes, affine):
    module = network(axes, affine)
    expected, gradients = step(module, module, image(axes, 2))
    twin = copy.deepcopy(module).to(memory_format=LAYOUTS[axes + 2])
    keep_layout(twin)
    found, others = step(twin, torch.compile(twin, backend=backend, fullgraph=True), image(axes, 2))
    assert found.is_contiguous(memory_format=LAYOUTS[axes + 2])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    scale = max(g.abs().max() for g in gradients).item()
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_in_half_precision_counts_in_float32(backend):
    """Means of bfloat16 sums over a feature map would be far off."""
    norm = InstanceNorm3d(4, affine=True)
    x = (torch.randn(2, 4, 16, 16, 16, generator=torch.Generator().manual_seed(0)) + 20).bfloat16()
    expected = nn.functional.instance_norm(x.float(), weight=norm.weight, bias=norm.bias)
    found = torch.compile(norm, backend=backend, fullgraph=True)(x)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.02


def test_other_norms_and_single_voxels_are_torchs_business():
    tracking = nn.InstanceNorm3d(4, track_running_stats=True)
    batch, own = nn.BatchNorm3d(4), nn.InstanceNorm2d(4)
    keep_layout(nn.ModuleList([tracking, batch, own]))
    assert [type(m) for m in (tracking, batch, own)] == [nn.InstanceNorm3d, nn.BatchNorm3d, InstanceNorm2d]
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        own(torch.zeros(1, 4, 1, 1))
    with pytest.raises(ValueError, match="expected 3D or 4D input"):
        own(torch.zeros(1, 4, 1, 1, 1))
    x = torch.randn(4, 5, 6)  # without a batch
    assert torch.equal(own(x), nn.InstanceNorm2d(4)(x))
