"""Masked autoencoding: hide most of a patch, reconstruct it from the rest.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022, https://arxiv.org/abs/2111.06377), with the
recipe of the OpenMind benchmark (Wald et al., ICCV 2025, https://arxiv.org/abs/2412.17041) for 3D medical images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from nnunet_ssl.backbones import Backbone
from nnunet_ssl.heads.autoencoder import AUTOENCODERS
from nnunet_ssl.losses.reconstruction import Loss, LossOn, MaskedReconstruction
from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.methods.tensors import Bool, Float, Whole
from nnunet_ssl.settings.bounds import Count, NotNegative, Rate
from nnunet_ssl.views.host import to_device
from nnunet_ssl.views.masks import (
    MaskBlock,
    MaskRatio,
    MaskStyle,
    block_grid,
    check_ratio,
    draw_ratio,
    random_blocks,
    upsample_mask,
)
from nnunet_ssl.views.spec import Views


@dataclass(frozen=True)
class MAEConfig:
    """Defaults: OpenMind (mask ratio, block, decoder depth)."""

    # Share of hidden blocks, or a pair to draw it from once per batch; Spark3D's ablation (Wald et al., CVPR 2025)
    # finds 0.6, 0.75 and (0.6, 0.9) equally good.
    mask_ratio: MaskRatio = 0.75
    mask_block: MaskBlock = 16  # voxels per axis, U-Nets only, clipped to the patch
    mask_tokens: Count = 1  # Primus only: tokens per axis of a mask block; OpenMind hides single tokens
    mask_style: MaskStyle = "blocks"  # grid: regular, slices: slabs; the MAE paper's best is random blocks
    loss: Loss = "l2"  # OpenMind
    loss_on: LossOn = "hidden"  # OpenMind and the MAE paper
    # Standardise the target within each block; +0.5 points in the MAE paper, not in OpenMind
    normalise_target: bool = False
    decoder_depth: Count = 2  # Primus only: transformer blocks that see all tokens, as light as in the MAE paper
    decoder_drop_path: Rate = 0.2  # Primus only: stochastic depth of the last decoder block
    # Factor on the probabilities of rotation and scaling, 0.2 each in OpenMind; 0: neither
    augmentation: NotNegative = 1.0

    def __post_init__(self) -> None:
        check_ratio(self.mask_ratio)


class MAEInputs(TypedDict):
    """What the task makes of a batch."""

    image: Float  # [B, C, *patch]
    excluded: Bool  # [B, 1, *patch]
    hidden: Bool  # [B, 1, *patch]


class MAETokens(MAEInputs, total=False):
    """And for a Primus, which is given only what is seen."""

    keep: Whole  # [B, K]: numbers of the tokens, in C order, that are not hidden


class MAE(Method):
    """Masked autoencoder.

    U-Nets: hidden blocks become 0, the mean of a z-scored image, and the whole network reconstructs them. Primus: hidden
    tokens never enter the encoder; a light decoder sees the encoded ones and a learned mask token elsewhere.

    The loss counts hidden voxels only, and no excluded ones. nnssl's Primus variant differs by mistake: its loss mask
    had the first two axes swapped, so that a quarter of the supervised voxels were visible.
    """

    name = "mae"
    trivial_answer = "the mean grey value"
    Config = MAEConfig
    Inputs: ClassVar[type] = MAETokens
    citation = (
        "He K., Chen X., Xie S., Li Y., Dollar P., Girshick R. (2022). Masked Autoencoders Are Scalable Vision "
        "Learners. CVPR. | Wald T. et al. (2025). An OpenMind for 3D medical vision self-supervised learning. ICCV."
    )

    def __init__(self, backbone: Backbone, config: MAEConfig) -> None:
        super().__init__(backbone, config)
        self.autoencoder = AUTOENCODERS[backbone.kind](backbone, config)
        block = self.autoencoder.mask_block
        self.criterion = MaskedReconstruction(config.loss, config.loss_on, block if config.normalise_target else None)

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        size = tuple(int(s) for s in patch_size)
        return Views(region_size=size, network_size=size, rotate_and_scale=config.augmentation)

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        image, config = batch["image"], self.config
        width, grid = block_grid(image.shape[2:], self.autoencoder.mask_block)
        ratio = draw_ratio(config.mask_ratio, generator)
        blocks = random_blocks(len(image), grid, ratio, generator, config.mask_style)  # on the host: [B, *grid]
        return {
            "image": image,
            "excluded": batch["excluded"],
            "hidden": upsample_mask(to_device(blocks, image.device), width, image.shape[2:]),
            **self.autoencoder.visible(blocks, image.device),
        }

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.criterion.number(inputs)

    def forward(self, inputs: dict[str, Tensor]) -> MethodOutput:
        return self.score(self.reconstruct(inputs), inputs)

    def reconstruct(self, inputs: dict[str, Tensor]) -> Tensor:
        """Reconstruction [B, C, *patch] from what is not hidden."""
        return self.autoencoder(self.backbone, inputs)

    def score(self, reconstructed: Tensor, inputs: dict[str, Tensor]) -> MethodOutput:
        """Loss of a reconstruction."""
        return self.criterion.score(reconstructed, inputs["image"].masked_fill(inputs["hidden"], 0), inputs)

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Everything hidden reconstructed in the mean grey value."""
        return self.criterion.yardstick(inputs)
