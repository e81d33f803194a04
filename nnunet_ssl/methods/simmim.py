"""SimMIM: replace hidden tokens by a learned one, encode all of them, reconstruct with the lightest head.

Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling" (CVPR 2022, https://arxiv.org/abs/2111.09886), with
the recipe of the OpenMind benchmark (Wald et al., ICCV 2025, https://arxiv.org/abs/2412.17041).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from nnunet_ssl.backbones import Backbone
from nnunet_ssl.losses.reconstruction import Loss, LossOn, MaskedReconstruction
from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.methods.tensors import Bool, Float
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


class SimMIMInputs(TypedDict):
    """What the task makes of a batch."""

    image: Float  # [B, C, *patch]
    excluded: Bool  # [B, 1, *patch]
    hidden: Bool  # [B, 1, *patch], in whole tokens


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
    Inputs: ClassVar[type] = SimMIMInputs
    citation = (
        "Xie Z. et al. (2022). SimMIM: A Simple Framework for Masked Image Modeling. CVPR. | Wald T. et al. (2025). "
        "An OpenMind for 3D medical vision self-supervised learning. ICCV."
    )

    def __init__(self, backbone: Backbone, config: SimMIMConfig) -> None:
        super().__init__(backbone, config)
        block = config.mask_block or backbone.mask_block
        self.mask_block = aligned_block(block, backbone.mask_unit, "a token, which is hidden as a whole")
        self.mask_token = backbone.new_mask_token()
        self.criterion = MaskedReconstruction(
            config.loss, config.loss_on, self.mask_block if config.normalise_target else None
        )
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
        return self.criterion.number(inputs)

    def forward(self, inputs: dict[str, Tensor]) -> MethodOutput:
        features = self.masked_features(inputs)
        return self.score(self.backbone.decode(features), inputs)

    def masked_features(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The encoder's feature maps, finest first, of images [B, C, *patch] in which blocks are hidden."""
        return self.backbone.masked_features(inputs["image"], inputs["hidden"], self.mask_token)

    def score(self, reconstructed: Tensor, inputs: Mapping[str, Tensor]) -> MethodOutput:
        """Loss of a reconstruction."""
        seen = self.backbone.masked_image(inputs["image"], inputs["hidden"], self.mask_token).detach()
        return self.criterion.score(reconstructed, seen, inputs)

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Everything hidden reconstructed in the mean grey value."""
        return self.criterion.yardstick(inputs)
