"""Sparse encoding against a twin that loops over visible positions, and against the dense encoder."""

import copy
import itertools

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.regularization import SqueezeExcite
from torch import nn

from nnunet_ssl.backbones.sparse import HiddenPositions, SparseEncoder, check_sparse, visible_instance_norm
from nnunet_ssl.errors import BackboneError
from nnunet_ssl.views.masks import random_blocks, upsample_mask


def residual(ndim: int = 3, norm: type[nn.Module] | None = None) -> nn.Module:
    conv = nn.Conv3d if ndim == 3 else nn.Conv2d
    norm = norm or (nn.InstanceNorm3d if ndim == 3 else nn.InstanceNorm2d)
    strides = [1, 2, 2] if ndim == 2 else [1, [1, 2, 2], 2]
    return ResidualEncoderUNet(
        1, 3, [4, 6, 8], conv, 3, strides, [1, 2, 1], 1, [1, 1], True, norm, {"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip


def plain(ndim: int = 3) -> nn.Module:
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if ndim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    options = {"norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}}
    strides = [1, 2, 2] if ndim == 2 else [1, [1, 2, 2], 2]
    return PlainConvUNet(1, 3, [4, 6, 8], conv, 3, strides, 2, 1, 1, True, norm, **options)


def encoder_and_mask(build, ndim, ratio=0.6):
    torch.manual_seed(1)
    encoder = build(ndim).encoder
    for module in encoder.modules():  # weights that differ between channels, or a mix-up would not show
        if isinstance(module, (nn.InstanceNorm2d, nn.InstanceNorm3d)):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    size, stride = ((8, 16, 12), (2, 4, 4)) if ndim == 3 else ((16, 24), (4, 4))
    grid = tuple(s // d for s, d in zip(size, stride, strict=True))
    cells = torch.as_tensor(random_blocks(2, grid, ratio, torch.Generator().manual_seed(2)))
    image = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(3))
    return encoder, image, cells, upsample_mask(cells, stride, size)


class LoopNorm(nn.Module):
    """Visits the visible positions one by one."""

    def __init__(self, norm: nn.Module, cells: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.cells = norm, cells

    def forward(self, x):
        out = torch.zeros_like(x)
        for b, c in itertools.product(range(x.shape[0]), range(x.shape[1])):
            places = [
                p
                for p in itertools.product(*(range(s) for s in x.shape[2:]))
                if not self.cells[
                    (b, *(i * g // s for i, g, s in zip(p, self.cells.shape[1:], x.shape[2:], strict=True)))
                ]
            ]
            values = torch.stack([x[(b, c, *p)] for p in places]).double()
            mean, variance = values.mean(), values.var(unbiased=False)
            for p, value in zip(places, values, strict=True):
                normal = (value - mean) / (variance + self.norm.eps).sqrt()
                out[(b, c, *p)] = (normal * self.norm.weight[c] + self.norm.bias[c]).float()
        return out


class LoopConv(nn.Module):
    """A convolution whose hidden outputs are set to zero one by one."""

    def __init__(self, conv: nn.Module, cells: torch.Tensor) -> None:
        super().__init__()
        self.conv, self.cells = conv, cells

    def forward(self, x):
        out = self.conv(x).clone()
        for cell in self.cells.nonzero().tolist():
            widths = [s // g for s, g in zip(out.shape[2:], self.cells.shape[1:], strict=True)]
            block = tuple(slice(i * w, (i + 1) * w) for i, w in zip(cell[1:], widths, strict=True))
            out[(cell[0], slice(None), *block)] = 0
        return out


def replaced(module: nn.Module, cells: torch.Tensor) -> nn.Module:
    """SparK's way: a copy of the network with other modules in it."""
    if isinstance(module, (nn.InstanceNorm2d, nn.InstanceNorm3d)):
        return LoopNorm(module, cells)
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        return LoopConv(module, cells)
    for name, child in module.named_children():
        setattr(module, name, replaced(child, cells))
    return module


@pytest.mark.parametrize(("build", "ndim"), [(residual, 2), (plain, 2), (residual, 3)])
def test_against_the_loops(build, ndim):
    encoder, image, cells, hidden = encoder_and_mask(build, ndim)
    masked = image.masked_fill(hidden, 0)
    with torch.no_grad():
        expected = replaced(copy.deepcopy(encoder), cells)(masked)
        skips = SparseEncoder(encoder)(masked, HiddenPositions(cells))
    for fast, slow in zip(skips, expected, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("build", [residual, plain])
def test_nothing_hidden_is_the_dense_encoder_with_the_same_gradients(build, ndim):
    encoder, image, cells, _ = encoder_and_mask(build, ndim)
    gradients, outputs = [], []
    for sparse in (False, True):
        encoder.zero_grad()
        skips = SparseEncoder(encoder)(image, HiddenPositions(torch.zeros_like(cells))) if sparse else encoder(image)
        sum(s.square().sum() for s in skips).backward()
        outputs.append([s.detach() for s in skips])
        gradients.append({n: p.grad.clone() for n, p in encoder.named_parameters()})
    for dense, sparse in zip(*outputs, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-3, atol=1e-4)
    scale = max(g.abs().max() for g in gradients[0].values())
    for name, dense in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], dense, rtol=1e-2, atol=1e-4 * scale.item())


@pytest.mark.parametrize("build", [residual, plain])
def test_hidden_positions_stay_zero_at_every_resolution(build):
    encoder, image, cells, hidden = encoder_and_mask(build, 3)
    positions = HiddenPositions(cells)
    skips = SparseEncoder(encoder)(image.masked_fill(hidden, 0), positions)
    for skip in skips:
        mask = positions.at(skip.shape[2:])[0].expand_as(skip)
        assert not skip[mask].any()
        assert (skip[~mask] != 0).float().mean() > 0.9


def test_the_encoder_is_itself_again_afterwards_even_after_an_error():
    encoder, image, cells, hidden = encoder_and_mask(residual, 3)
    keys, before = list(encoder.state_dict()), encoder(image)[-1]
    sparse, positions = SparseEncoder(encoder), HiddenPositions(cells)
    assert list(encoder.state_dict()) == keys
    inside = sparse(image.masked_fill(hidden, 0), positions)[-1]
    assert not torch.allclose(inside, before)
    assert torch.equal(encoder(image)[-1], before)
    with pytest.raises(RuntimeError, match="expected input"):
        sparse(image.expand(-1, 3, -1, -1, -1), positions)
    assert torch.equal(encoder(image)[-1], before)


def test_a_copy_hides_from_its_own_layers():
    encoder, image, cells, hidden = encoder_and_mask(residual, 3)
    sparse, masked = SparseEncoder(encoder), image.masked_fill(hidden, 0)
    before = sparse(masked, HiddenPositions(cells))[-1]
    twin = copy.deepcopy(sparse)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert torch.equal(twin(masked, HiddenPositions(cells))[-1], before)


def test_masks_are_made_once_per_resolution():
    positions = HiddenPositions(torch.tensor([[[True, False]], [[False, False]]]))
    mask, count = positions.at((2, 4))
    assert positions.at((2, 4))[0] is mask
    assert mask[0, 0].tolist() == [[True, True, False, False]] * 2
    assert count.flatten().tolist() == [4, 8]


def test_norm_in_low_precision_sums_in_float32():
    x = torch.randn(2, 3, 32, 32, 32, generator=torch.Generator().manual_seed(0)) + 3
    positions = HiddenPositions(torch.zeros(2, 4, 4, 4, dtype=torch.bool))
    exact = nn.functional.instance_norm(x.bfloat16().float())
    result = visible_instance_norm(x.bfloat16(), positions)
    assert result.dtype == torch.bfloat16
    assert (result.float() - exact).abs().max() < 0.02


def test_constant_map_is_zero_and_has_a_gradient():
    x = torch.full((1, 2, 4, 4), 7.0, requires_grad=True)
    out = visible_instance_norm(x, HiddenPositions(torch.zeros(1, 2, 2, dtype=torch.bool)))
    out.sum().backward()
    assert out.abs().max() < 1e-2
    assert x.grad.isfinite().all()
    zeros = torch.zeros(1, 2, 4, 4, requires_grad=True)
    visible_instance_norm(zeros, HiddenPositions(torch.zeros(1, 2, 2, dtype=torch.bool))).sum().backward()
    assert zeros.grad.isfinite().all()


def test_unknown_layers_are_refused():
    check_sparse(residual().encoder)
    with pytest.raises(BackboneError, match="BatchNorm3d"):
        check_sparse(residual(norm=nn.BatchNorm3d).encoder)
    with pytest.raises(BackboneError, match="SqueezeExcite"):
        check_sparse(nn.Sequential(SqueezeExcite(16, nn.Conv3d)))
