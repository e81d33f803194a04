"""Masked autoencoding: hide most of a patch, paint it from the rest.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022, https://arxiv.org/abs/2111.06377), with the
recipe of the OpenMind benchmark (Wald et al., ICCV 2025, https://arxiv.org/abs/2412.17041) for 3D medical images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.eva import Eva
from torch import Tensor, nn

from nnunet_ssl.backbones import Backbone, PrimusBackbone
from nnunet_ssl.backbones.primus import run_blocks, scatter_tokens
from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.methods.reconstruction import explained_variance, masked_mse
from nnunet_ssl.views.masks import block_grid, hidden_count, random_block_mask, random_hidden, upsample_mask
from nnunet_ssl.views.spec import Views


@dataclass(frozen=True)
class MAEConfig:
    """Defaults: OpenMind (mask ratio, block, decoder depth; section 5.1 and 5.2 of its supplement)."""

    mask_ratio: float = 0.75  # share of hidden blocks; Spark3D's ablation finds 0.6 and 0.75 equally good
    mask_block: int = 16  # voxels per axis, U-Nets only, clipped to the patch; a Primus hides whole tokens
    decoder_depth: int = 2  # Primus only: transformer blocks that see all tokens, as light as in the MAE paper
    decoder_drop_path: float = 0.2  # Primus only: stochastic depth of the last decoder block

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1, found {self.mask_ratio}.")
        if not isinstance(self.mask_block, int) or self.mask_block < 1:
            raise ValueError(f"mask_block must be a whole number of voxels >= 1, found {self.mask_block!r}.")
        if not isinstance(self.decoder_depth, int) or self.decoder_depth < 1:
            raise ValueError(f"decoder_depth must be a whole number >= 1, found {self.decoder_depth!r}.")
        if not 0 <= self.decoder_drop_path < 1:
            raise ValueError(f"decoder_drop_path must lie in [0, 1), found {self.decoder_drop_path}.")


class MAE(Method):
    """Masked autoencoder.

    U-Nets: hidden blocks become 0, the mean of a z-scored image, and the whole network paints them. Primus: hidden
    tokens never enter the encoder; a light decoder sees the encoded ones and a learned mask token elsewhere.

    The loss counts hidden voxels only, and no excluded ones. nnssl's Primus variant differs by mistake: its loss mask
    had the first two axes swapped, so that a quarter of the supervised voxels were visible.
    """

    name = "mae"
    Config = MAEConfig
    citation = (
        "He K., Chen X., Xie S., Li Y., Dollar P., Girshick R. (2022). Masked Autoencoders Are Scalable Vision "
        "Learners. CVPR. | Wald T. et al. (2025). An OpenMind for 3D medical vision self-supervised learning. ICCV."
    )

    def __init__(self, backbone: Backbone, config: MAEConfig) -> None:
        super().__init__(backbone, config)
        if isinstance(backbone, PrimusBackbone):
            hidden_count(len(backbone.network.eva.pos_embed[0]), config.mask_ratio)
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

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        size = tuple(int(s) for s in patch_size)
        return Views(region_size=size, network_size=size)

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        image, excluded = batch["image"], batch["excluded"]
        size, ratio = image.shape[2:], self.config.mask_ratio
        inputs = {"image": image, "excluded": excluded}
        if isinstance(self.backbone, PrimusBackbone):
            token = self.backbone.stride
            _, grid = block_grid(size, token)
            hidden = random_hidden(len(image), int(torch.tensor(grid).prod()), ratio, generator)
            # A stable sort of False < True lists the visible tokens first, in their natural order.
            num_visible = hidden.shape[1] - hidden_count(hidden.shape[1], ratio)
            inputs["keep"] = hidden.int().argsort(dim=1, stable=True)[:, :num_visible]
            inputs["hidden"] = upsample_mask(hidden.view(len(image), *grid), token, size)
        else:
            inputs["hidden"] = random_block_mask(len(image), size, self.config.mask_block, ratio, generator)
        return inputs

    def forward(self, inputs: dict[str, Tensor]) -> MethodOutput:
        image, hidden = inputs["image"], inputs["hidden"]
        masked = image.masked_fill(hidden, 0)
        if isinstance(self.backbone, PrimusBackbone):
            prediction = self._paint_tokens(self.backbone, image, inputs["keep"])
        else:
            prediction = self.backbone(masked)
        loss = masked_mse(prediction, image, hidden, inputs["excluded"])
        with torch.no_grad():
            explained = explained_variance(prediction, image, hidden, inputs["excluded"])
        preview = {"input": image, "masked": masked, "reconstruction": prediction.detach()}
        return MethodOutput(loss, {"explained_variance": explained}, preview)

    def _paint_tokens(self, backbone: PrimusBackbone, image: Tensor, keep: Tensor) -> Tensor:
        """Reconstruction [B, C, *patch] from the kept tokens `keep` [B, K]."""
        embedded = backbone.embed(image)
        encoded = backbone.encode(embedded, keep)
        full = scatter_tokens(encoded, keep, self.mask_token, embedded.shape[1])
        rope = None if self.decoder.rope is None else self.decoder.rope.get_embed()
        decoded = run_blocks(self.decoder, full + self.decoder.pos_embed, rope)
        return backbone.decode([backbone.to_map(decoded)])
