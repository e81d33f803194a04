"""SimMIM: replace hidden tokens by a learned one, encode all of them, reconstruct with the lightest head.

Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling" (CVPR 2022, https://arxiv.org/abs/2111.09886), with
the recipe of the OpenMind benchmark (Wald et al., ICCV 2025, https://arxiv.org/abs/2412.17041).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssl.backbones import Backbone, PrimusBackbone
from nnunet_ssl.losses.reconstruction import (
    Loss,
    LossOn,
    counted_voxels,
    masked_reconstruction,
    masked_yardstick,
)
from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.settings.bounds import NotNegative
from nnunet_ssl.views.masks import (
    MaskBlock,
    MaskRatio,
    MaskStyle,
    aligned_block,
    block_grid,
    check_ratio,
    draw_ratio,
    hidden_count,
    random_block_mask,
)
from nnunet_ssl.views.spec import Views

UNET_BLOCK = 16  # voxels; a U-Net has no tokens, so it hides what OpenMind's masked autoencoder hides


@dataclass(frozen=True)
class SimMIMConfig:
    """Defaults: OpenMind."""

    # Share of hidden blocks, or a pair to draw it from once per batch; OpenMind 0.75, SimMIM's own 0.6 with 32 pixels.
    mask_ratio: MaskRatio = 0.75
    # Voxels per axis, a multiple of the token for a Primus; None: one token (OpenMind), 16 voxels for a U-Net.
    mask_block: MaskBlock | None = None
    mask_style: MaskStyle = "blocks"  # grid: regular, slices: slabs; OpenMind hides random blocks
    loss: Loss = "l2"  # OpenMind, the SimMIM paper takes l1
    loss_on: LossOn = "hidden"  # OpenMind and the paper
    normalise_target: bool = False  # standardise the target within each mask block; neither OpenMind nor the paper
    # Factor on the probabilities of rotation and scaling, 0.2 each in OpenMind; 0: neither
    augmentation: NotNegative = 1.0

    def __post_init__(self) -> None:
        check_ratio(self.mask_ratio)


class SimMIM(Method):
    """Masked image modelling with mask tokens in the encoder, 2D (U-Nets) and 3D.

    Primus: the image is embedded unmasked, then hidden tokens are replaced by the mask token; a token holds its own
    voxels only, so nothing leaks. All tokens pass the encoder, and the network's own decoder reconstructs. U-Nets: hidden
    voxels become the mask token, one learned number per channel that starts at 0, the mean of a z-scored image.

    Same as nnssl for Primus, whose class cannot be built at its present revision; U-Nets are an addition.
    """

    name = "simmim"
    trivial_answer = "the mean grey value"
    Config = SimMIMConfig
    citation = (
        "Xie Z. et al. (2022). SimMIM: A Simple Framework for Masked Image Modeling. CVPR. | Wald T. et al. (2025). "
        "An OpenMind for 3D medical vision self-supervised learning. ICCV."
    )

    def __init__(self, backbone: Backbone, config: SimMIMConfig) -> None:
        super().__init__(backbone, config)
        self.mask_block: int | tuple[int, ...]
        if isinstance(backbone, PrimusBackbone):
            self.mask_block = aligned_block(config.mask_block, backbone.stride, "a token, which is hidden as a whole")
            self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.embed_dim))
            nn.init.normal_(self.mask_token, std=1e-6)
        else:
            self.mask_block = config.mask_block or UNET_BLOCK
            self.mask_token = nn.Parameter(torch.zeros(1, backbone.in_channels, *(1,) * backbone.ndim))
        hidden_count(prod(block_grid(backbone.patch_size, self.mask_block)[1]), 0.5)

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        size = tuple(int(s) for s in patch_size)
        return Views(region_size=size, network_size=size, rotate_and_scale=config.augmentation)

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        image, config = batch["image"], self.config
        ratio = draw_ratio(config.mask_ratio, generator)
        hidden = random_block_mask(len(image), image.shape[2:], self.mask_block, ratio, generator, config.mask_style)
        return {"image": image, "excluded": batch["excluded"], "hidden": hidden}

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"counted": counted_voxels(inputs["hidden"], inputs["excluded"], self.config.loss_on).sum()}

    def forward(self, inputs: dict[str, Tensor]) -> MethodOutput:
        features = self.masked_features(inputs["image"], inputs["hidden"])
        return self.score(self.backbone.decode(features), inputs)

    def hide(self, image: Tensor, hidden: Tensor) -> Tensor:
        """What is to be seen of images: mask token or, for a Primus, whose tokens are hidden after the embedding, 0."""
        if isinstance(self.backbone, PrimusBackbone):
            return image.masked_fill(hidden, 0)
        return torch.where(hidden, self.mask_token.to(image.dtype), image)

    def masked_features(self, image: Tensor, hidden: Tensor) -> list[Tensor]:
        """The encoder's feature maps, finest first, of images [B, C, *patch] in which blocks are hidden."""
        if not isinstance(self.backbone, PrimusBackbone):
            return self.backbone.features(self.hide(image, hidden))
        embedded = self.backbone.embed(image)
        # Blocks consist of whole tokens, so a token's first voxel speaks for all of them.
        corners = tuple(slice(None, None, s) for s in (1, *self.backbone.stride))
        hidden_tokens = hidden[:, 0][corners].flatten(1).unsqueeze(-1)
        tokens = torch.where(hidden_tokens, self.mask_token.to(embedded.dtype), embedded)
        return [self.backbone.to_map(self.backbone.encode(tokens))]

    def score(self, reconstructed: Tensor, inputs: Mapping[str, Tensor]) -> MethodOutput:
        """Loss of a reconstruction."""
        image, hidden = inputs["image"], inputs["hidden"]
        return masked_reconstruction(
            reconstructed,
            image,
            self.hide(image, hidden).detach(),
            hidden,
            inputs["excluded"],
            self.config,
            self.mask_block,
            inputs.get("counted"),
        )

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Everything hidden reconstructed in the mean grey value."""
        return masked_yardstick(inputs["image"], inputs["hidden"], inputs["excluded"], self.config, self.mask_block)
