"""Models Genesis: what is corrupted, what the loss counts, that it learns to restore."""

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.methods.models_genesis import ModelsGenesis, ModelsGenesisConfig
from nnunet_ssl.settings.blocks import read_config
from nnunet_ssl.views.value_range import value_range

PATCH = (16, 24, 8)
NOTHING = {
    "flip_probability": 0.0,
    "shuffle_probability": 0.0,
    "intensity_probability": 0.0,
    "paint_probability": 0.0,
}


def unet(channels: int = 1, ndim: int = 3) -> nn.Module:
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if ndim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    options = {"norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin_kwargs": {"inplace": True}}
    return ResidualEncoderUNet(
        channels, 3, [8, 12, 16], conv, 3, [1, 2, 2], 1, channels, [1, 1], True, norm, nonlin=nn.LeakyReLU, **options
    )


def primus(channels: int = 1) -> nn.Module:
    return Primus(channels, 216, (8, 8, 8), channels, 2, 3, PATCH, init_values=0.1, scale_attn_inner=True)


def make(network: nn.Module, patch=PATCH, **config) -> ModelsGenesis:
    torch.manual_seed(0)
    return ModelsGenesis(wrap_network(network, patch), ModelsGenesisConfig(**config))


def batch_of(patch=PATCH, channels: int = 1, size: int = 2) -> dict[str, torch.Tensor]:
    image = torch.randn(size, channels, *patch, generator=torch.Generator().manual_seed(7))
    return {"image": image, "excluded": torch.zeros(size, 1, *patch, dtype=torch.bool)}


def prepared(method: ModelsGenesis, batch, seed: int = 0) -> dict[str, torch.Tensor]:
    return method.prepare(batch, torch.Generator().manual_seed(seed))


def test_views_leave_flips_to_the_method():
    views = ModelsGenesis.views(ModelsGenesisConfig(), PATCH)
    assert (views.region_size, views.network_size, views.regions) == (PATCH, PATCH, 1)
    assert not views.rotate_and_scale
    assert not views.mirror


def test_flips_move_image_and_exclusion_together():
    method = make(unet(), **{**NOTHING, "flip_probability": 1.0, "paint_probability": 0.01})
    batch = batch_of(size=16)
    batch["excluded"] = batch["image"] > 1
    inputs = prepared(method, batch)
    assert torch.equal(inputs["excluded"], inputs["image"] > 1)
    assert not torch.equal(inputs["image"], batch["image"])
    assert torch.equal(inputs["image"].flatten(1).sort().values, batch["image"].flatten(1).sort().values)


def test_shuffling_alone_keeps_every_value():
    method = make(unet(), **{**NOTHING, "shuffle_probability": 1.0, "shuffle_block": 4})
    inputs = prepared(method, batch_of())
    assert torch.equal(inputs["image"], batch_of()["image"])
    assert not torch.equal(inputs["corrupted"], inputs["image"])
    assert torch.equal(inputs["corrupted"].flatten(1).sort().values, inputs["image"].flatten(1).sort().values)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (-200.0, 500.0)])
def test_painting_alone_is_noise_in_the_image_s_own_range(offset, scale):
    method = make(unet(), **{**NOTHING, "paint_probability": 1.0, "inpaint_probability": 0.0})
    batch = batch_of(size=4)
    batch["image"] = offset + scale * batch["image"]
    inputs = prepared(method, batch)
    lows, highs = value_range(inputs["image"], inputs["excluded"])
    for image, corrupted, low, high in zip(inputs["image"], inputs["corrupted"], lows, highs, strict=True):
        painted = corrupted != image
        assert 0 < painted.float().mean() < 1
        noise = corrupted[painted]
        assert noise.min() >= low
        assert noise.max() <= high
        assert noise.mean().item() == pytest.approx(((low + high) / 2).item(), abs=0.1 * (high - low).item())
        assert noise.std().item() == pytest.approx((high - low).item() / 12**0.5, rel=0.15)


def test_each_corruption_as_often_as_asked():
    sizes = {"shuffle_probability": 0.5, "intensity_probability": 0.9, "paint_probability": 0.9}
    for name, probability in sizes.items():
        config = {**NOTHING, name: probability, "shuffle_share": 1.0, "paint_another": 1.0, "shuffle_block": 4}
        method = make(unet(ndim=2), patch=(24, 24), **config)
        inputs = prepared(method, batch_of((24, 24), size=400))
        changed = (inputs["corrupted"] != inputs["image"]).flatten(1).any(dim=1).float().mean().item()
        assert changed == pytest.approx(probability, abs=0.08)


def test_default_widths_of_shuffled_boxes():
    method = make(unet())
    assert method._shuffle_widths((160, 160, 160)) == (16, 16, 16)  # the recipe
    assert method._shuffle_widths((40, 56, 40)) == (4, 5, 4)
    assert method._shuffle_widths((16, 24, 1)) == (2, 2, 1)
    with pytest.raises(ValueError, match="2 axes, the patch"):
        make(unet(), shuffle_block=(4, 4))._shuffle_widths((8, 8, 8))


@pytest.mark.parametrize("build", [unet, primus])
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_loss_counts_every_voxel_that_is_not_excluded(build, loss):
    method = make(build(), loss=loss).eval()
    batch = batch_of()
    batch["excluded"][:, :, 3:9] = True
    inputs = prepared(method, batch)
    output = method(inputs)
    total, number = 0.0, 0
    prediction = output.preview["reconstruction"].flatten().tolist()
    image, excluded = inputs["image"].flatten().tolist(), inputs["excluded"].flatten().tolist()
    for p, t, e in zip(prediction, image, excluded, strict=True):
        if not e:
            total += abs(p - t) if loss == "l1" else (p - t) ** 2
            number += 1
    assert output.loss.item() == pytest.approx(total / number, rel=1e-4)


def test_indicator_is_zero_for_copying_one_for_the_truth():
    method = make(unet())
    inputs = prepared(method, batch_of())
    for answer, expected in (("corrupted", 0), ("image", 1)):
        method.backbone.forward = lambda x, a=answer: inputs[a]
        assert method(inputs).terms["restored"].item() == pytest.approx(expected, abs=1e-5)
    method.backbone.forward = lambda x: inputs["image"] + 2 * (inputs["corrupted"] - inputs["image"])
    assert method(inputs).terms["restored"].item() == pytest.approx(-0.75, abs=1e-5)
    clean = {**inputs, "corrupted": inputs["image"]}
    assert -1 <= method(clean).terms["restored"].item() <= 0


@pytest.mark.parametrize("build", [unet, primus])
def test_gradients_reach_what_trains_and_nothing_else(build):
    method = make(build())
    method(prepared(method, batch_of())).loss.backward()
    assert not method.heads()
    without = {n for n, p in method.named_parameters() if p.grad is None}
    assert without == {n for n, p in method.named_parameters() if not p.requires_grad}
    assert all("seg_layers.0" in n for n in without)


def test_two_dimensions_several_channels_batch_of_one():
    method = make(unet(3, ndim=2), patch=(32, 24))
    output = method(prepared(method, batch_of((32, 24), channels=3, size=1)))
    assert output.preview["reconstruction"].shape == (1, 3, 32, 24)
    assert output.loss.isfinite()


def test_same_seed_same_corruption():
    method = make(unet())
    first, again, other = (prepared(method, batch_of(), seed)["corrupted"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "config",
    [
        {"flip_probability": 1.5}, {"shuffle_share": -0.1}, {"paint_boxes": 0}, {"shuffle_block": 0}, {"loss": "l0"},
        {"paint_another": True},
    ],
)  # fmt: skip
def test_nonsense_is_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        read_config(ModelsGenesisConfig, config, "here")


def test_nothing_to_restore_is_refused():
    with pytest.raises(ValueError, match="Nothing is corrupted"):
        ModelsGenesisConfig(**NOTHING)


def smooth_images(count: int = 4) -> torch.Tensor:
    noise = torch.randn(count, 1, *PATCH, generator=torch.Generator().manual_seed(2))
    for _ in range(6):
        noise = nn.functional.avg_pool3d(nn.functional.pad(noise, (2,) * 6, mode="replicate"), 5, 1)
    return (noise - noise.mean()) / noise.std()


EASIER = {"intensity_probability": 0.0, "inpaint_probability": 0.6}  # a transformer takes longer to learn the curves


@pytest.mark.parametrize(("build", "steps", "lr", "config"), [(unet, 100, 5e-3, {}), (primus, 160, 2e-3, EASIER)])
def test_learns_more_than_the_mean_and_more_than_copying(build, steps, lr, config):
    torch.set_num_threads(1)
    method = make(build(), flip_probability=0.0, shuffle_block=3, **config)
    batch = {"image": smooth_images(), "excluded": torch.zeros(4, 1, *PATCH, dtype=torch.bool)}
    optimizer = torch.optim.AdamW(method.parameters(), lr=lr)
    losses, copied = [], []
    for step in range(steps):
        inputs = prepared(method, batch, seed=step)
        output = method(inputs)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
        copied.append((inputs["corrupted"] - inputs["image"]).square().mean().item())
    last = sum(losses[-20:]) / 20
    assert losses[0] > 0.9
    assert last < 0.7  # the mean has 1, the images' variance
    assert last < 0.7 * sum(copied[-20:]) / 20
