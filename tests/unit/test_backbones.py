"""Backbones must be the networks they wrap: U-Nets to the last bit, Primus but for rounding (`blockwise`)."""

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.backbones.primus import scatter_tokens
from nnunet_ssl.errors import BackboneError

PATCH = (16, 24, 8)


@pytest.fixture
def primus() -> nn.Module:
    torch.manual_seed(0)
    return Primus(1, 72, (8, 8, 8), 2, 2, 1, PATCH, init_values=0.1, scale_attn_inner=True).eval()


def test_unet_backbone_is_the_network():
    torch.manual_seed(0)
    unet = ResidualEncoderUNet(
        2, 3, [4, 8, 16], nn.Conv3d, 3, [1, 2, [1, 2, 2]], 1, 3, [1, 1], True, nn.InstanceNorm3d, nonlin=nn.LeakyReLU
    ).eval()
    keys = set(unet.state_dict())
    backbone = wrap_network(unet, PATCH)
    image = torch.randn(1, 2, *PATCH)
    assert torch.equal(backbone(image), unet(image))
    assert (backbone.in_channels, backbone.out_channels) == (2, 3)
    assert backbone.stride == (2, 4, 4)
    assert [f.shape[1] for f in backbone.features(image)] == list(backbone.feature_channels)
    assert set(backbone.network.state_dict()) == keys


def test_primus_backbone_is_the_network(primus):
    backbone = wrap_network(primus, PATCH)
    image = torch.randn(2, 1, *PATCH)
    torch.testing.assert_close(backbone(image), primus(image), rtol=1e-5, atol=1e-5)
    assert backbone.grid == (2, 3, 1)
    assert backbone.features(image)[0].shape == (2, 72, 2, 3, 1)


def test_dropping_no_token_is_keeping_all(primus):
    backbone = wrap_network(primus, PATCH)
    tokens = backbone.embed(torch.randn(2, 1, *PATCH))
    everything = torch.arange(6).expand(2, -1)
    assert torch.allclose(backbone.encode(tokens, everything), backbone.encode(tokens), atol=1e-6)


def test_kept_tokens_keep_their_positions(primus):
    """Any order of the kept tokens gives the same features per token: positions travel with the tokens."""
    backbone = wrap_network(primus, PATCH)
    tokens = backbone.embed(torch.randn(2, 1, *PATCH))
    keep = torch.tensor([[0, 2, 5], [1, 3, 4]])
    shuffled = keep[:, [2, 0, 1]]
    assert torch.allclose(backbone.encode(tokens, keep)[:, [2, 0, 1]], backbone.encode(tokens, shuffled), atol=1e-5)


def test_batch_of_as_many_samples_as_heads():
    """timm's rotation would land on the heads instead of the samples when both have the same number."""
    torch.manual_seed(0)
    network = Primus(1, 216, (8, 8, 8), 1, 1, 3, PATCH, init_values=0.1, scale_attn_inner=True).eval()
    backbone = wrap_network(network, PATCH)
    tokens = backbone.embed(torch.randn(3, 1, *PATCH))
    keep = torch.tensor([[0, 1, 2], [2, 3, 5], [1, 4, 5]])
    together = backbone.encode(tokens, keep)
    alone = torch.cat([backbone.encode(tokens[i : i + 1], keep[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_scatter_against_loops():
    tokens, keep = torch.randn(2, 3, 4), torch.tensor([[5, 0, 2], [1, 3, 4]])
    filler = torch.full((1, 1, 4), 9.0)
    full = scatter_tokens(tokens, keep, filler, 6)
    for sample in range(2):
        for place in range(6):
            kept = (keep[sample] == place).nonzero()
            expected = tokens[sample, kept[0, 0]] if len(kept) else filler[0, 0]
            assert torch.equal(full[sample, place], expected)


def test_other_networks_are_refused():
    with pytest.raises(BackboneError, match="not one of nnU-Net's U-Nets"):
        wrap_network(nn.Conv3d(1, 1, 3), PATCH)


def test_primus_patch_must_fit_the_tokens(primus):
    with pytest.raises(BackboneError, match="--patch-size 16 24 16"):
        wrap_network(primus, (16, 24, 12))
