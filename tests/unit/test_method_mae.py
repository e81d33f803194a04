"""Masked autoencoding: what the networks see, what the loss counts, that it learns."""

import itertools

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.errors import BackboneError
from nnunet_ssl.losses.reconstruction import explained_variance, masked_mse
from nnunet_ssl.methods.mae import MAE, MAEConfig

PATCH = (16, 24, 8)


def residual_unet(channels: int = 1, ndim: int = 3) -> nn.Module:
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if ndim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    options = {"norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin_kwargs": {"inplace": True}}
    return ResidualEncoderUNet(
        channels, 3, [6, 12, 24], conv, 3, [1, 2, 2], 1, channels, [1, 1], True, norm, nonlin=nn.LeakyReLU, **options
    )


def primus(channels: int = 1, drop_path: float = 0.0) -> nn.Module:
    return Primus(
        channels, 72, (8, 8, 8), channels, 2, 1, PATCH, drop_path_rate=drop_path, init_values=0.1, scale_attn_inner=True
    )


def make(network: nn.Module, patch=PATCH, **config) -> MAE:
    torch.manual_seed(0)
    return MAE(wrap_network(network, patch), MAEConfig(**config))


def batch_of(patch=PATCH, channels: int = 1, size: int = 2) -> dict[str, torch.Tensor]:
    image = torch.randn(size, channels, *patch, generator=torch.Generator().manual_seed(7))
    return {"image": image, "excluded": torch.zeros(size, 1, *patch, dtype=torch.bool)}


def prepared(method: MAE, batch, seed: int = 0) -> dict[str, torch.Tensor]:
    return method.prepare(batch, torch.Generator().manual_seed(seed))


def slow_masked_mse(prediction, target, hidden, excluded) -> float:
    """Add up the voxels one by one."""
    total, count = 0.0, 0
    for position in itertools.product(*(range(s) for s in prediction.shape)):
        where = (position[0], 0, *position[2:])
        if hidden[where] and not excluded[where]:
            total += (prediction[position] - target[position]).item() ** 2
            count += 1
    return total / count


@pytest.mark.parametrize("shape", [(2, 1, 4, 5, 3), (1, 3, 6, 4)])
def test_masked_mse_against_loops(shape):
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(shape, generator=generator) for _ in range(2))
    hidden, excluded = (torch.rand(shape[0], 1, *shape[2:], generator=generator) < p for p in (0.7, 0.2))
    expected = slow_masked_mse(prediction, target, hidden, excluded)
    assert masked_mse(prediction, target, hidden, excluded).item() == pytest.approx(expected, rel=1e-5)


def test_fully_excluded_patch_costs_nothing_and_has_no_nan():
    prediction = torch.randn(1, 1, 4, 4, 4, requires_grad=True)
    everywhere = torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)
    loss = masked_mse(prediction, torch.zeros(1, 1, 4, 4, 4), everywhere, everywhere)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


def test_explained_variance_of_truth_and_mean():
    batch = batch_of()
    hidden = torch.rand(2, 1, *PATCH) < 0.5
    target = batch["image"]
    mean = target[hidden].mean()
    assert explained_variance(target, target, hidden, batch["excluded"]).item() == pytest.approx(1)
    constant = torch.full_like(target, mean.item())
    assert explained_variance(constant, target, hidden, batch["excluded"]).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("build", [residual_unet, primus])
def test_hidden_voxels_never_reach_the_prediction(build):
    """Change every hidden voxel: the reconstruction must not notice. Non-cubic patch, so swapped axes would show."""
    method = make(build()).eval()
    inputs = prepared(method, batch_of())
    other = {**inputs, "image": torch.where(inputs["hidden"], torch.randn_like(inputs["image"]), inputs["image"])}
    with torch.no_grad():
        first, second = (method(i).preview["reconstruction"] for i in (inputs, other))
    assert torch.equal(first, second)


@pytest.mark.parametrize("build", [residual_unet, primus])
def test_visible_voxels_do_reach_the_prediction(build):
    method = make(build()).eval()
    inputs = prepared(method, batch_of())
    other = {**inputs, "image": torch.where(inputs["hidden"], inputs["image"], inputs["image"] + 1)}
    with torch.no_grad():
        first, second = (method(i).preview["reconstruction"] for i in (inputs, other))
    assert not torch.allclose(first, second, atol=1e-4)


def test_kept_tokens_are_exactly_the_visible_ones():
    """The voxel mask and the list of kept tokens, made of one draw, must mean the same places."""
    method = make(primus())
    inputs = prepared(method, batch_of())
    grid = method.backbone.grid
    for sample in range(2):
        visible = [
            n
            for n, (a, b, c) in enumerate(itertools.product(*(range(g) for g in grid)))
            if not inputs["hidden"][sample, 0, a * 8, b * 8, c * 8]
        ]
        assert inputs["keep"][sample].tolist() == visible


def test_hidden_share():
    unet, transformer = make(residual_unet(), mask_block=4), make(primus(), mask_ratio=0.5)
    assert prepared(unet, batch_of())["hidden"].float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert prepared(transformer, batch_of())["hidden"].float().mean().item() == pytest.approx(0.5)


@pytest.mark.parametrize("build", [residual_unet, primus])
def test_excluded_voxels_do_not_count(build):
    method = make(build()).eval()
    batch = batch_of()
    batch["excluded"][:, :, :8] = True
    inputs = prepared(method, batch)
    torch.manual_seed(0)
    loss = method(inputs)
    rows = loss.preview["reconstruction"][:, :, 8:], inputs["image"][:, :, 8:], inputs["hidden"][:, :, 8:]
    assert loss.loss.item() == pytest.approx(masked_mse(*rows, batch["excluded"][:, :, 8:]).item(), rel=1e-5)


@pytest.mark.parametrize("build", [residual_unet, primus])
def test_gradients_reach_what_trains_and_nothing_else(build):
    method = make(build())
    method(prepared(method, batch_of())).loss.backward()
    without = {n for n, p in method.named_parameters() if p.grad is None}
    # Deep supervision is off, so a U-Net's coarser output layers have nothing to do, and are frozen.
    assert without == {n for n, p in method.named_parameters() if not p.requires_grad}
    assert all("seg_layers.0" in n for n in without)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("build", [residual_unet, primus])
def test_several_channels(build, channels):
    method = make(build(channels))
    output = method(prepared(method, batch_of(channels=channels)))
    assert output.preview["reconstruction"].shape == (2, channels, *PATCH)


def test_two_dimensions_and_plain_unet():
    method = make(residual_unet(ndim=2), patch=(32, 24))
    assert method(prepared(method, batch_of((32, 24)))).loss.isfinite()
    plain = PlainConvUNet(
        1, 3, [4, 8, 16], nn.Conv3d, [[1, 3, 3], 3, 3], [1, [1, 2, 2], 2], 1, 1, 1, True, nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
    )  # fmt: skip
    method = make(plain, patch=(6, 24, 24))
    assert method.backbone.stride == (2, 4, 4)
    assert method(prepared(method, batch_of((6, 24, 24)))).loss.isfinite()


def test_patch_that_does_not_fit_names_the_next_size():
    with pytest.raises(BackboneError, match=r"--patch-size 16 20 12"):
        wrap_network(residual_unet(), (15, 18, 10))


def smooth_images(count: int = 4) -> torch.Tensor:
    """Blobs wide enough to be guessed from their surroundings."""
    noise = torch.randn(count, 1, *PATCH, generator=torch.Generator().manual_seed(2))
    for _ in range(6):
        noise = nn.functional.avg_pool3d(nn.functional.pad(noise, (2,) * 6, mode="replicate"), 5, 1)
    return (noise - noise.mean()) / noise.std()


@pytest.mark.parametrize(("build", "steps", "lr"), [(residual_unet, 60, 5e-3), (primus, 200, 2e-3)])
def test_learns_more_than_the_mean(build, steps, lr):
    """The trivial solution, the mean, explains no variance; masks differ at every step."""
    torch.set_num_threads(1)
    method = make(build(), mask_block=4, mask_ratio=0.5, decoder_drop_path=0.0)
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
