"""A task around a tiny network, and a batch of what it reads: single steps, without trainer, plans or data."""

from __future__ import annotations

from typing import Any

import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.methods.base import Method


def tiny_method(
    cls: type[Method],
    kind: str,
    patch: tuple[int, ...],
    channels: int = 1,
    embed: int = 72,
    settings: dict[str, Any] | None = None,
) -> Method:
    """The task around a tiny "unet" (residual encoder), "plain" U-Net or "primus", weights from seed 0.

    patch: voxels per axis, two or three axes. embed: numbers per token of a Primus, a multiple of 72. settings: fields of the
    task's Config. Raises BackboneError as the training does.
    """
    torch.manual_seed(0)
    config = cls.Config(**(settings or {}))
    size, out = cls.views(config, patch).network_size, cls.output_channels(config, channels)
    network = (
        Primus(channels, embed, (8,) * 3, out, 2, embed // 72, size, init_values=0.1, scale_attn_inner=True)
        if kind == "primus"
        else _unet(channels, out, len(patch), kind == "plain")
    )
    return cls(wrap_network(network, size, cls.crop_setting), config)


def _unet(channels: int, out: int, ndim: int, plain: bool) -> nn.Module:
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if ndim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    return (PlainConvUNet if plain else ResidualEncoderUNet)(
        channels, 3, [8, 16, 24], conv, 3, [1, 2, 2], 1, out, [1, 1], True, norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip


def tiny_batch(
    cls: type[Method],
    patch: tuple[int, ...],
    channels: int = 1,
    images: int = 3,
    settings: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """A random batch of the regions that the task reads, "image" and "excluded" as `Method.prepare` has them."""
    views = cls.views(cls.Config(**(settings or {})), patch)
    first = (images, views.regions) if views.regions > 1 else (images,)
    image = torch.randn(*first, channels, *views.region_size, generator=torch.Generator().manual_seed(7))
    return {"image": image, "excluded": torch.zeros(*first, 1, *views.region_size, dtype=torch.bool)}


def prepare(method: Method, batch: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """What the task makes of the batch with a generator of this seed."""
    with torch.no_grad():
        return method.prepare(batch, torch.Generator().manual_seed(seed))
