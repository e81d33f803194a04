"""Masked autoencoding: hide most of a patch, reconstruct it from the rest.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022, https://arxiv.org/abs/2111.06377), with the
recipe of the OpenMind benchmark (Wald et al., ICCV 2025, https://arxiv.org/abs/2412.17041) for 3D medical images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.eva import Eva
from torch import Tensor, nn

from nnunet_ssl.backbones import Backbone, PrimusBackbone
from nnunet_ssl.backbones.primus import run_blocks, scatter_tokens
from nnunet_ssl.errors import BackboneError
from nnunet_ssl.losses.reconstruction import (
    Loss,
    LossOn,
    counted_voxels,
    masked_reconstruction,
    masked_yardstick,
)
from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.settings.bounds import Count, NotNegative, Rate
from nnunet_ssl.views.host import to_device
from nnunet_ssl.views.masks import (
    MaskBlock,
    MaskRatio,
    MaskStyle,
    block_grid,
    check_ratio,
    draw_ratio,
    random_block_mask,
    random_blocks,
    upsample_blocks,
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
    citation = (
        "He K., Chen X., Xie S., Li Y., Dollar P., Girshick R. (2022). Masked Autoencoders Are Scalable Vision "
        "Learners. CVPR. | Wald T. et al. (2025). An OpenMind for 3D medical vision self-supervised learning. ICCV."
    )

    def __init__(self, backbone: Backbone, config: MAEConfig) -> None:
        super().__init__(backbone, config)
        if isinstance(backbone, PrimusBackbone):
            self._check_grid(backbone, config.mask_tokens)
            attention = backbone.network.eva.blocks[0].attn
            self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.embed_dim))
            nn.init.normal_(self.mask_token, std=1e-6)
            self.decoder = Eva(
                embed_dim=backbone.embed_dim,
                depth=config.decoder_depth,
                num_heads=attention.num_heads,
                ref_feat_shape=backbone.grid,
                drop_path_rate=config.decoder_drop_path,
                init_values=0.1,
                scale_attn_inner=True,
            )

    @staticmethod
    def _check_grid(backbone: PrimusBackbone, mask_tokens: int) -> None:
        """Refuse mask blocks that do not tile the tokens: every sample must keep the same number of them."""
        width, blocks = block_grid(backbone.grid, mask_tokens)
        if prod(blocks) < 2:
            enough = tuple(2 * w * s for w, s in zip(width, backbone.stride, strict=True))
            raise BackboneError(
                f"{backbone.patch_size} voxels are a single mask block, so nothing can be hidden and still be guessed from "
                f"the rest. Use at least {enough}: {backbone.how_to_set(enough)}"
            )
        if any(n % w for n, w in zip(backbone.grid, width, strict=True)):
            fitting = tuple(w * b * s for w, b, s in zip(width, blocks, backbone.stride, strict=True))
            raise BackboneError(
                f"Mask blocks of {mask_tokens} tokens per axis do not tile the {backbone.grid} tokens of the patch "
                f"{backbone.patch_size}. The next valid size is {fitting}: {backbone.how_to_set(fitting)}"
            )

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        size = tuple(int(s) for s in patch_size)
        return Views(region_size=size, network_size=size, rotate_and_scale=config.augmentation)

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        image, excluded = batch["image"], batch["excluded"]
        size, ratio, style = image.shape[2:], draw_ratio(self.config.mask_ratio, generator), self.config.mask_style
        inputs = {"image": image, "excluded": excluded}
        if isinstance(self.backbone, PrimusBackbone):
            token = self.backbone.stride
            _, grid = block_grid(size, token)
            width, blocks = block_grid(grid, self.config.mask_tokens)
            coarse = random_blocks(len(image), blocks, ratio, generator, style)
            hidden = upsample_blocks(coarse, width, grid)
            kept = np.stack([np.flatnonzero(~own) for own in hidden])  # as many in every sample
            inputs["keep"] = to_device(kept, image.device)
            inputs["hidden"] = upsample_mask(to_device(hidden, image.device), token, size)
        else:
            inputs["hidden"] = random_block_mask(len(image), size, self.config.mask_block, ratio, generator, style)
        return inputs

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"counted": counted_voxels(inputs["hidden"], inputs["excluded"], self.config.loss_on).sum()}

    def forward(self, inputs: dict[str, Tensor]) -> MethodOutput:
        return self.score(self.reconstruct(inputs), inputs)

    def reconstruct(self, inputs: dict[str, Tensor]) -> Tensor:
        """Reconstruction [B, C, *patch] from what is not hidden."""
        if isinstance(self.backbone, PrimusBackbone):
            return self._reconstruct_tokens(self.backbone, inputs["image"], inputs["keep"])
        return self.backbone(inputs["image"].masked_fill(inputs["hidden"], 0))

    def score(self, reconstructed: Tensor, inputs: dict[str, Tensor]) -> MethodOutput:
        """Loss of a reconstruction."""
        image, hidden, excluded = inputs["image"], inputs["hidden"], inputs["excluded"]
        masked = image.masked_fill(hidden, 0)
        return masked_reconstruction(
            reconstructed, image, masked, hidden, excluded, self.config, self._target_block(), inputs.get("counted")
        )

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Everything hidden reconstructed in the mean grey value."""
        image, hidden, excluded = inputs["image"], inputs["hidden"], inputs["excluded"]
        return masked_yardstick(image, hidden, excluded, self.config, self._target_block())

    def _target_block(self) -> int | tuple[int, ...]:
        """Voxels of the blocks within which a target is standardised, where it is."""
        return self.backbone.stride if isinstance(self.backbone, PrimusBackbone) else self.config.mask_block

    def _reconstruct_tokens(self, backbone: PrimusBackbone, image: Tensor, keep: Tensor) -> Tensor:
        """Reconstruction [B, C, *patch] from the kept tokens `keep` [B, K]."""
        embedded = backbone.embed(image)
        encoded = backbone.encode(embedded, keep)
        full = scatter_tokens(encoded, keep, self.mask_token, embedded.shape[1])
        rope = None if self.decoder.rope is None else self.decoder.rope.get_embed()
        decoded = run_blocks(self.decoder, full + self.decoder.pos_embed, rope)
        return backbone.decode([backbone.to_map(decoded)])
