"""nnU-Net's U-Nets (plain and residual encoder, 2D and 3D) as backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from nnunet_ssl.backbones.base import Backbone
from nnunet_ssl.errors import BackboneError


class UNetBackbone(Backbone):
    """Any network with nnU-Net's `encoder` (returning skips) and `decoder` with deep supervision switched off."""

    kind = "unet"

    def __init__(self, network: Any, patch_size: Sequence[int], crop_setting: str | None = None) -> None:
        super().__init__()
        encoder: Any = getattr(network, "encoder", None)
        decoder: Any = getattr(network, "decoder", None)
        if not hasattr(encoder, "strides") or not hasattr(decoder, "seg_layers"):
            raise BackboneError(
                f"{type(network).__name__} has no encoder and decoder, so it is not one of nnU-Net's U-Nets. "
                "Pre-training works on the U-Nets of nnU-Net's planners and on Primus."
            )
        self.network = network
        decoder.deep_supervision = False
        # Without deep supervision only the last output layer is used: the others must not wait for gradients.
        decoder.seg_layers[:-1].requires_grad_(False)
        self.patch_size, self.crop_setting = tuple(int(s) for s in patch_size), crop_setting
        self.ndim = len(self.patch_size)
        strides = np.array([np.broadcast_to(s, self.ndim) for s in encoder.strides])
        self.stride = tuple(int(s) for s in strides.prod(axis=0))
        self.feature_channels = tuple(int(c) for c in encoder.output_channels)
        self.in_channels = next(m for m in encoder.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))).in_channels
        self.out_channels = int(decoder.seg_layers[-1].out_channels)
        self.check_size(self.patch_size, "Crop size" if crop_setting else "Patch size")

    def features(self, x: Tensor) -> list[Tensor]:
        return self.network.encoder(x)

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        return self.network.decoder(features)
