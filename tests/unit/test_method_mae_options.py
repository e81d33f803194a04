"""The ablations of masked autoencoding that are config fields: mask style, block, ratio, loss, target."""

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.errors import BackboneError
from nnunet_ssl.methods import get_method
from nnunet_ssl.methods.mae import MAE, MAEConfig
from nnunet_ssl.settings.blocks import read_config

PATCH = (16, 32, 24)


def unet() -> nn.Module:
    return ResidualEncoderUNet(
        1, 2, [4, 8], nn.Conv3d, 3, [1, 2], 1, 1, [1], True, nn.InstanceNorm3d, {"affine": True}, nonlin=nn.LeakyReLU
    )


def primus() -> nn.Module:
    return Primus(1, 72, (8, 8, 8), 1, 1, 1, PATCH, init_values=0.1, scale_attn_inner=True)


def make(build, **config) -> MAE:
    torch.manual_seed(0)
    return MAE(wrap_network(build(), PATCH), MAEConfig(**config)).eval()


def batch() -> dict[str, torch.Tensor]:
    image = torch.randn(2, 1, *PATCH, generator=torch.Generator().manual_seed(7))
    return {"image": image, "excluded": torch.zeros(2, 1, *PATCH, dtype=torch.bool)}


@pytest.mark.parametrize("build", [unet, primus])
@pytest.mark.parametrize(
    "config",
    [
        {"mask_style": "grid"},
        {"mask_style": "slices", "mask_ratio": 0.5},
        {"mask_ratio": (0.5, 0.8)},
        {"mask_ratio": (0.5, 0.8), "mask_style": "slices"},
        {"mask_block": (8, 16, 4)},
        {"loss": "l1", "loss_on": "everywhere"},
        {"normalise_target": True},
    ],
)  # fmt: skip
def test_every_option_runs_hides_and_trains(build, config):
    method = make(build, **config)
    inputs = method.prepare(batch(), torch.Generator().manual_seed(1))
    output = method(inputs)
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.preview["reconstruction"].shape == inputs["image"].shape
    other = {**inputs, "image": torch.where(inputs["hidden"], 5.0, inputs["image"])}
    if not config.get("normalise_target"):  # the preview would show the changed image's own units
        assert torch.equal(method(other).preview["reconstruction"], output.preview["reconstruction"])
    if build is primus:
        share = inputs["hidden"].float().mean().item()
        assert inputs["keep"].shape[1] == pytest.approx((1 - share) * 24)
        for sample in range(2):
            tokens = inputs["hidden"][sample, 0, ::8, ::8, ::8].flatten()
            assert not tokens[inputs["keep"][sample]].any()


def test_blocks_of_tokens():
    method = MAE(
        wrap_network(Primus(1, 72, (8, 8, 8), 1, 1, 1, (16, 32, 16), init_values=0.1), (16, 32, 16)),
        MAEConfig(mask_tokens=2, mask_ratio=0.5),
    )
    sample = {"image": torch.randn(2, 1, 16, 32, 16), "excluded": torch.zeros(2, 1, 16, 32, 16, dtype=torch.bool)}
    hidden = method.prepare(sample, torch.Generator().manual_seed(0))["hidden"]
    assert hidden[:, 0, ::16, ::16, ::16].sum(dim=(1, 2, 3)).tolist() == [1, 1]
    assert hidden.sum().item() == 2 * 16**3


def test_blocks_that_do_not_tile_the_tokens_name_the_next_patch():
    with pytest.raises(BackboneError, match="--patch-size 16 32 32"):
        make(primus, mask_tokens=2)


@pytest.mark.parametrize(
    "config",
    [{"mask_style": "stripes"}, {"loss": "ssim"}, {"loss_on": "air"}, {"mask_tokens": 0}, {"mask_ratio": (0.9, 0.1)}],
)
def test_nonsense_is_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        read_config(MAEConfig, config, "here")


@pytest.mark.parametrize("name", ["mae", "simmim", "spark3d"])
def test_augmentation_is_a_factor_on_rotation_and_scaling(name):
    cls = get_method(name)
    for factor in (0.0, 1.0, 2.5):
        views = cls.views(cls.Config(augmentation=factor), (32, 32, 32))
        assert (views.rotate_and_scale, views.mirror) == (factor, True)
    with pytest.raises(ValueError, match="augmentation must be a number >= 0"):
        read_config(cls.Config, {"augmentation": -0.1}, "here")
