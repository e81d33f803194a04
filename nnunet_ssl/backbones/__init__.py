"""What a method may ask of a network: features, tokens, decode."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from nnunet_ssl.backbones.base import Backbone
from nnunet_ssl.backbones.primus import PrimusBackbone
from nnunet_ssl.backbones.unet import UNetBackbone

__all__ = ["Backbone", "PrimusBackbone", "UNetBackbone", "wrap_network"]


def wrap_network(network: nn.Module, patch_size: Sequence[int], crop_setting: str | None = None) -> Backbone:
    """Backbone around a bare nnU-Net network built for `patch_size` voxels.

    crop_setting: "method.field" where that field, not the plans' patch size, decides what the network sees; errors name it.
    Raises BackboneError for networks that are not nnU-Net's and for sizes that do not fit them.
    """
    if hasattr(network, "eva"):
        return PrimusBackbone(network, patch_size, crop_setting)
    return UNetBackbone(network, patch_size, crop_setting)
