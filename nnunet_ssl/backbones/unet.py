"""nnU-Net's U-Nets (plain and residual encoder, 2D and 3D) as backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ssl.backbones.base import Backbone
from nnunet_ssl.errors import BackboneError

MASK_BLOCK = 16  # voxels


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
        self.feature_strides = tuple(tuple(int(s) for s in by) for by in strides.cumprod(axis=0))
        self.stride = self.feature_strides[-1]
        self.mask_unit, self.mask_block = (1,) * self.ndim, (MASK_BLOCK,) * self.ndim
        self.feature_channels = tuple(int(c) for c in encoder.output_channels)
        self.in_channels = next(m for m in encoder.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))).in_channels
        self.out_channels = int(decoder.seg_layers[-1].out_channels)
        self.check_size(self.patch_size, "Crop size" if crop_setting else "Patch size")

    def features(self, x: Tensor) -> list[Tensor]:
        return self.network.encoder(x)

    @property
    def decoder(self) -> nn.Module:
        return self.network.decoder

    def freeze_decoder(self) -> None:
        super().freeze_decoder()
        self.network.encoder.requires_grad_(True)  # the decoder holds the encoder as well

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        return self.decoder(features)

    def new_mask_token(self) -> nn.Parameter:
        """One number per channel, which starts at the mean of a z-scored image."""
        return nn.Parameter(torch.zeros(1, self.in_channels, *(1,) * self.ndim))

    def masked_image(self, x: Tensor, hidden: Tensor, mask_token: Tensor) -> Tensor:
        return torch.where(hidden, mask_token.to(x.dtype), x)

    def masked_features(self, x: Tensor, hidden: Tensor, mask_token: Tensor) -> list[Tensor]:
        return self.features(self.masked_image(x, hidden, mask_token))
