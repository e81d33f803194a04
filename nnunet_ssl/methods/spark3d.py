"""Spark3D (S3D): masked autoencoding for U-Nets whose encoder sees nothing but the visible voxels.

Wald et al., "Revisiting MAE pre-training for 3D medical image segmentation" (CVPR 2025,
https://arxiv.org/abs/2410.23132), which brings SparK (Tian et al., ICLR 2023, https://arxiv.org/abs/2301.03580) to 3D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from nnunet_ssl.backbones import Backbone
from nnunet_ssl.backbones.sparse import HiddenPositions, SparseEncoder, visible_instance_norm
from nnunet_ssl.losses.reconstruction import (
    Loss,
    LossOn,
    MaskedReconstruction,
)
from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.methods.tensors import Bool, Float
from nnunet_ssl.settings.bounds import NotNegative
from nnunet_ssl.views.host import to_device
from nnunet_ssl.views.masks import (
    MaskBlock,
    MaskRatio,
    MaskStyle,
    aligned_block,
    block_grid,
    check_ratio,
    draw_ratio,
    hidden_count,
    random_blocks,
    upsample_blocks,
    upsample_mask,
)
from nnunet_ssl.views.spec import Views


@dataclass(frozen=True)
class Spark3DConfig:
    """Defaults: the Spark3D paper and the OpenMind benchmark."""

    # Share of hidden blocks, or a pair to draw it from once per batch. The paper's ablation (average Dice):
    # 0.6 71.60, 0.75 71.66, (0.6, 0.9) 71.65; 0.3 and 0.9 are worse.
    mask_ratio: MaskRatio = 0.75
    # Voxels per axis, a multiple of the encoder's total stride; None: that stride, the paper's 32 for ResEnc-L at 160.
    mask_block: MaskBlock | None = None
    mask_style: MaskStyle = "blocks"  # grid: regular, slices: slabs; the paper hides random blocks
    mask_token: bool = True  # a learned vector per skip where hidden, else zero; the paper: 71.37 with, 71.36 without
    normalise_skips: bool = True  # norm without weights over the visible positions of each skip; OpenMind
    # Width of the densification convolutions, 0 for none; the paper: 71.66 with 3, 71.37 without
    densify_kernel: Literal[0, 1, 3, 5, 7] = 3
    loss: Loss = "l2"  # the paper
    loss_on: LossOn = "hidden"  # the paper
    normalise_target: bool = False  # standardise the target within each block; SparK does, the 3D paper does not
    # Factor on the probabilities of rotation and scaling, 0.2 each in OpenMind; 0: neither
    augmentation: NotNegative = 1.0

    def __post_init__(self) -> None:
        check_ratio(self.mask_ratio)


class Densify(nn.Module):
    """Makes a skip [B, C, *spatial] dense again: norm over visible positions, mask token elsewhere, convolution."""

    def __init__(self, channels: int, ndim: int, kernel: int, token: bool, normalise: bool) -> None:
        super().__init__()
        self.normalise = normalise
        self.mask_token = nn.Parameter(torch.empty(1, channels, *(1,) * ndim)) if token else None
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.projection = convolution(channels, channels, kernel, padding=kernel // 2) if kernel else nn.Identity()

    def forward(self, x: Tensor, hidden: HiddenPositions) -> Tensor:
        if self.normalise:
            x = visible_instance_norm(x, hidden)
        if self.mask_token is not None:
            x = torch.where(hidden.at(x.shape[2:])[0], self.mask_token.to(x.dtype), x)
        return self.projection(x)


class Spark3DInputs(TypedDict):
    """What the task makes of a batch."""

    image: Float  # [B, C, *patch]
    excluded: Bool  # [B, 1, *patch]
    hidden_cells: Bool  # [B, *coarsest]: of the encoder's last feature map
    hidden: Bool  # [B, 1, *patch]


class Spark3D(Method):
    """Sparse masked autoencoder for U-Nets, 2D and 3D.

    The mask lies on the encoder's coarsest grid. The encoder sees the visible voxels only: the input is zero where
    hidden, every convolution gives zero there, norms use the statistics of the visible positions. Each skip is then
    filled with a mask token and, below full resolution, made dense by a convolution; the network's own decoder reconstructs.

    Differs from nnssl: (1) the input is masked before the stem, whose first convolution there looked one voxel into the
    hidden blocks; (2) no module is replaced, so that no untrained copies of the weights are stored beside the trained
    ones; (3) the mask is aligned to the bottleneck (32 voxels per block for ResEnc-L, as in the paper) so that the
    bottleneck is sparse too, where nnssl hid 16 voxels and had a dense bottleneck; (4) a ratio drawn per batch comes
    from the step's own generator, not from a sequence that starts again on every resume.
    """

    name = "spark3d"
    trivial_answer = "the mean grey value"
    backbones = ("unet",)
    Config = Spark3DConfig
    Inputs = Spark3DInputs
    citation = (
        "Wald T. et al. (2025). Revisiting MAE pre-training for 3D medical image segmentation. CVPR. | Tian K. et al. "
        "(2023). Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling. ICLR."
    )

    def __init__(self, backbone: Backbone, config: Spark3DConfig) -> None:
        super().__init__(backbone, config)
        self.sparse = SparseEncoder(backbone.network.encoder)
        # A hidden and a visible voxel must never meet in one position of the bottleneck.
        self.mask_block = aligned_block(config.mask_block, backbone.stride, "the encoder's total stride")
        self.criterion = MaskedReconstruction(
            config.loss, config.loss_on, self.mask_block if config.normalise_target else None
        )
        self.coarsest = tuple(s // d for s, d in zip(backbone.patch_size, backbone.stride, strict=True))
        hidden_count(prod(block_grid(backbone.patch_size, self.mask_block)[1]), 0.5)
        kernels = [0] + [config.densify_kernel] * (len(backbone.feature_channels) - 1)
        self.densify = nn.ModuleList(
            Densify(channels, backbone.ndim, kernel, config.mask_token, config.normalise_skips)
            for channels, kernel in zip(backbone.feature_channels, kernels, strict=True)
        )

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        size = tuple(int(s) for s in patch_size)
        return Views(region_size=size, network_size=size, rotate_and_scale=config.augmentation)

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        image, stride = batch["image"], self.backbone.stride
        cells = tuple(b // s for b, s in zip(self.mask_block, stride, strict=True))  # of the bottleneck, per block
        width, blocks = block_grid(self.coarsest, cells)
        ratio = draw_ratio(self.config.mask_ratio, generator)
        coarse = random_blocks(len(image), blocks, ratio, generator, self.config.mask_style)
        hidden_cells = to_device(upsample_blocks(coarse, width, self.coarsest), image.device)
        return {
            "image": image,
            "excluded": batch["excluded"],
            "hidden_cells": hidden_cells,
            "hidden": upsample_mask(hidden_cells, stride, image.shape[2:]),
        }

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.criterion.number(inputs)

    def forward(self, inputs: dict[str, Tensor]) -> MethodOutput:
        # 1. What is hidden becomes 0, and stays 0 through the whole encoder: the skips [B, C_i, *spatial_i] are sparse.
        masked = inputs["image"].masked_fill(inputs["hidden"], 0)
        positions = HiddenPositions(inputs["hidden_cells"])
        sparse = self.sparse(masked, positions)
        # 2. Each skip is filled with its mask token and made dense.
        dense = [densify(skip, positions) for densify, skip in zip(self.densify, sparse, strict=True)]
        # 3. The network's own decoder reconstructs; only hidden voxels are scored.
        return self.criterion.score(self.backbone.decode(dense), masked, inputs)

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Everything hidden reconstructed in the mean grey value."""
        return self.criterion.yardstick(inputs)

    def recomputing(self) -> AbstractContextManager[object]:
        return self.sparse.hiding(self.sparse.hidden)
