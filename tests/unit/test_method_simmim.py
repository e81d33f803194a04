"""SimMIM: mask tokens at their places, nothing leaks, what trains, that it learns."""

import itertools

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.methods.simmim import SimMIM, SimMIMConfig
from nnunet_ssl.settings.blocks import read_config

PATCH = (16, 24, 8)


def unet(channels: int = 1, ndim: int = 3) -> nn.Module:
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if ndim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    options = {"norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin_kwargs": {"inplace": True}}
    return ResidualEncoderUNet(
        channels, 3, [8, 12, 16], conv, 3, [1, 2, 2], 1, channels, [1, 1], True, norm, nonlin=nn.LeakyReLU, **options
    )


def primus(channels: int = 1) -> nn.Module:
    return Primus(channels, 72, (8, 8, 8), channels, 2, 1, PATCH, init_values=0.1, scale_attn_inner=True)


def make(network: nn.Module, patch=PATCH, **config) -> SimMIM:
    torch.manual_seed(0)
    return SimMIM(wrap_network(network, patch), SimMIMConfig(**config))


def batch_of(patch=PATCH, channels: int = 1, size: int = 2) -> dict[str, torch.Tensor]:
    image = torch.randn(size, channels, *patch, generator=torch.Generator().manual_seed(7))
    return {"image": image, "excluded": torch.zeros(size, 1, *patch, dtype=torch.bool)}


def prepared(method: SimMIM, batch, seed: int = 0) -> dict[str, torch.Tensor]:
    return method.prepare(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("build", [unet, primus])
def test_hidden_voxels_never_reach_the_prediction(build):
    method = make(build()).eval()
    inputs = prepared(method, batch_of())
    other = {**inputs, "image": torch.where(inputs["hidden"], torch.randn_like(inputs["image"]), inputs["image"])}
    with torch.no_grad():
        first, second = (method(i).preview["reconstruction"] for i in (inputs, other))
    assert torch.equal(first, second)


@pytest.mark.parametrize("build", [unet, primus])
def test_visible_voxels_do_reach_the_prediction(build):
    method = make(build()).eval()
    inputs = prepared(method, batch_of())
    noise = torch.randn(2, 1, *PATCH, generator=torch.Generator().manual_seed(1))
    other = {**inputs, "image": torch.where(inputs["hidden"], inputs["image"], noise)}
    with torch.no_grad():
        first, second = (method(i).preview["reconstruction"] for i in (inputs, other))
    assert not torch.allclose(first, second, atol=1e-4)


def test_mask_tokens_stand_where_the_voxels_are_hidden():
    """Follow every token of the sequence back to its voxels."""
    method = make(primus())
    nn.init.normal_(method.mask_token)
    inputs = prepared(method, batch_of())
    entered = []
    method.backbone.encode = lambda tokens: entered.append(tokens) or tokens
    method(inputs)
    embedded = method.backbone.embed(inputs["image"])
    hidden = 0
    for sample in range(2):
        for n, (a, b, c) in enumerate(itertools.product(*(range(g) for g in method.backbone.grid))):
            voxels = inputs["hidden"][sample, 0, a * 8 : a * 8 + 8, b * 8 : b * 8 + 8, c * 8 : c * 8 + 8]
            assert voxels.all() or not voxels.any()
            hidden += bool(voxels.all())
            expected = method.mask_token[0, 0] if voxels.all() else embedded[sample, n]
            assert torch.equal(entered[0][sample, n], expected)
    assert hidden == 2 * 4  # floor(0.75 * 6)


def test_unet_sees_the_token_of_each_channel():
    method = make(unet(2), mask_block=4)
    assert not method.mask_token.any()  # starts at the mean of a z-scored image
    with torch.no_grad():
        method.mask_token.copy_(torch.tensor([0.5, -2.0]).view(1, 2, 1, 1, 1))
    inputs = prepared(method, batch_of(channels=2))
    masked = method(inputs).preview["masked"]
    for channel, value in enumerate((0.5, -2.0)):
        assert (masked[:, channel][inputs["hidden"][:, 0]] == value).all()
        visible = ~inputs["hidden"][:, 0]
        assert torch.equal(masked[:, channel][visible], inputs["image"][:, channel][visible])


def test_default_blocks():
    assert make(primus()).mask_block == (8, 8, 8)
    assert make(unet()).mask_block == (16, 16, 16)
    hidden = prepared(make(primus()), batch_of())["hidden"]
    assert hidden.flatten(1).sum(dim=1).tolist() == [4 * 512] * 2


def test_blocks_of_several_tokens():
    hidden = prepared(make(primus(), mask_block=(16, 8, 8), mask_ratio=0.4), batch_of())["hidden"]
    assert hidden.flatten(1).sum(dim=1).tolist() == [2 * 8 * 64] * 2
    assert torch.equal(hidden[:, :, :8], hidden[:, :, 8:])


def test_block_through_a_token_names_the_next():
    with pytest.raises(ValueError, match=r"a token.*\[16, 16, 16\]"):
        make(primus(), mask_block=12)


@pytest.mark.parametrize("build", [unet, primus])
def test_a_single_block_is_refused(build):
    with pytest.raises(ValueError, match="single block"):
        make(build(), mask_block=24)


@pytest.mark.parametrize("build", [unet, primus])
def test_gradients_reach_what_trains_and_nothing_else(build):
    method = make(build())
    method(prepared(method, batch_of())).loss.backward()
    assert method.mask_token.grad.any()
    assert set(method.heads()) == {"mask_token"}
    without = {n for n, p in method.named_parameters() if p.grad is None}
    assert without == {n for n, p in method.named_parameters() if not p.requires_grad}
    assert all("seg_layers.0" in n for n in without)


@pytest.mark.parametrize("build", [unet, primus])
@pytest.mark.parametrize(
    "config",
    [
        {"mask_style": "grid"}, {"mask_style": "slices", "mask_ratio": 0.5}, {"mask_ratio": (0.3, 0.7)},
        {"loss": "l1", "loss_on": "everywhere"}, {"normalise_target": True},
    ],
)  # fmt: skip
def test_options(build, config):
    method = make(build(), mask_block=8, **config)
    output = method(prepared(method, batch_of()))
    output.loss.backward()
    assert output.loss.isfinite()


@pytest.mark.parametrize("config", [{"mask_ratio": 0}, {"mask_block": -1}, {"loss": "l0"}, {"mask_style": "dots"}])
def test_nonsense_is_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        read_config(SimMIMConfig, config, "here")


@pytest.mark.parametrize("build", [unet, primus])
def test_excluded_voxels_do_not_count(build):
    method = make(build()).eval()
    batch = batch_of()
    batch["excluded"][:, :, :8] = True
    inputs = prepared(method, batch)
    output = method(inputs)
    error = (output.preview["reconstruction"] - inputs["image"]).square()
    counted = inputs["hidden"] & ~batch["excluded"]
    assert output.loss.item() == pytest.approx(error[counted].mean().item(), rel=1e-5)


def test_two_dimensions_batch_of_one_low_precision():
    method = make(unet(3, ndim=2), patch=(32, 24))
    inputs = prepared(method, batch_of((32, 24), channels=3, size=1))
    exact = method(inputs).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        assert method(inputs).loss.item() == pytest.approx(exact, rel=0.05)
    method = make(primus())
    with torch.autocast("cpu", torch.bfloat16):
        assert method(prepared(method, batch_of(size=1))).loss.isfinite()


def smooth_images(count: int = 4) -> torch.Tensor:
    noise = torch.randn(count, 1, *PATCH, generator=torch.Generator().manual_seed(2))
    for _ in range(6):
        noise = nn.functional.avg_pool3d(nn.functional.pad(noise, (2,) * 6, mode="replicate"), 5, 1)
    return (noise - noise.mean()) / noise.std()


@pytest.mark.parametrize(("build", "steps", "lr", "block"), [(unet, 60, 5e-3, 4), (primus, 200, 2e-3, None)])
def test_learns_more_than_the_mean(build, steps, lr, block):
    torch.set_num_threads(1)
    method = make(build(), mask_ratio=0.5, mask_block=block)
    batch = {"image": smooth_images(), "excluded": torch.zeros(4, 1, *PATCH, dtype=torch.bool)}
    optimizer = torch.optim.AdamW(method.parameters(), lr=lr)
    explained = []
    for step in range(steps):
        output = method(prepared(method, batch, seed=step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        explained.append(output.terms["explained_variance"].item())
    assert explained[0] < 0.1
    assert sum(explained[-10:]) / 10 > 0.35
