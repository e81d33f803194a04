"""What makes a masked autoencoder of a backbone: hide by voxels and use the whole network, or drop tokens and add a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.eva import Eva
from torch import Tensor, nn

from nnunet_ssl.backbones.base import Backbone
from nnunet_ssl.backbones.primus import PrimusBackbone, run_blocks, scatter_tokens
from nnunet_ssl.errors import BackboneError
from nnunet_ssl.views.host import to_device
from nnunet_ssl.views.masks import MaskBlock, block_grid, upsample_blocks


class AutoencoderConfig(Protocol):
    """The settings of a task that an autoencoder reads."""

    @property
    def mask_block(self) -> MaskBlock:
        """Voxels per axis of a mask block; U-Nets."""

    @property
    def mask_tokens(self) -> int:
        """Tokens per axis of a mask block; Primus."""

    @property
    def decoder_depth(self) -> int:
        """Transformer blocks of the light decoder; Primus."""

    @property
    def decoder_drop_path(self) -> float:
        """Stochastic depth of its last block; Primus."""


class VoxelAutoencoder(nn.Module):
    """U-Nets: hidden voxels become 0, the mean of a z-scored image, and the whole network reconstructs them."""

    def __init__(self, backbone: Backbone, config: AutoencoderConfig) -> None:
        super().__init__()
        self.mask_block: int | tuple[int, ...] = config.mask_block

    def visible(self, blocks: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        """Further inputs for hidden blocks [B, *grid] (True = hidden)."""
        return {}

    def forward(self, backbone: Backbone, inputs: Mapping[str, Tensor]) -> Tensor:
        """Reconstruction [B, C, *patch] of "image" [B, C, *patch], whose "hidden" voxels [B, 1, *patch] are not looked at."""
        return backbone(inputs["image"].masked_fill(inputs["hidden"], 0))


class TokenAutoencoder(nn.Module):
    """Primus: hidden tokens never enter the encoder; a light decoder sees the others, and a learned token in their places."""

    def __init__(self, backbone: PrimusBackbone, config: AutoencoderConfig) -> None:
        super().__init__()
        self.grid = backbone.grid
        self.blocks = check_grid(backbone, config.mask_tokens)
        self.mask_block = tuple(b * s for b, s in zip(self.blocks, backbone.stride, strict=True))  # voxels
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.embed_dim))
        nn.init.normal_(self.mask_token, std=1e-6)
        self.decoder = Eva(
            embed_dim=backbone.embed_dim,
            depth=config.decoder_depth,
            num_heads=backbone.network.eva.blocks[0].attn.num_heads,
            ref_feat_shape=backbone.grid,
            drop_path_rate=config.decoder_drop_path,
            init_values=0.1,
            scale_attn_inner=True,
        )

    def visible(self, blocks: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        """The entry "keep" [B, K]: the tokens that are not hidden, as many in every sample, by their number in C order."""
        hidden = upsample_blocks(blocks, self.blocks, self.grid)
        return {"keep": to_device(np.stack([np.flatnonzero(~own) for own in hidden]), device)}

    def forward(self, backbone: PrimusBackbone, inputs: Mapping[str, Tensor]) -> Tensor:
        """Reconstruction [B, C, *patch] from the tokens "keep" [B, K] of "image" [B, C, *patch]."""
        keep = inputs["keep"]
        tokens = backbone.embed(inputs["image"])  # [B, N, F]
        encoded = backbone.encode(tokens, keep)  # [B, K, F]
        full = scatter_tokens(encoded, keep, self.mask_token, tokens.shape[1])  # [B, N, F]
        rope = None if self.decoder.rope is None else self.decoder.rope.get_embed()
        decoded = run_blocks(self.decoder, full + self.decoder.pos_embed, rope)
        return backbone.decode([backbone.to_map(decoded)])


AUTOENCODERS: Mapping[str, Any] = {"unet": VoxelAutoencoder, "primus": TokenAutoencoder}  # by `Backbone.kind`


def check_grid(backbone: PrimusBackbone, mask_tokens: int) -> tuple[int, ...]:
    """Tokens of a mask block per axis; BackboneError unless blocks tile the patch, so that every sample keeps as many tokens."""
    width, blocks = block_grid(backbone.grid, mask_tokens)
    if prod(blocks) < 2:
        enough = tuple(2 * w * s for w, s in zip(width, backbone.stride, strict=True))
        raise BackboneError(
            f"{backbone.patch_size} voxels are a single mask block, so nothing can be hidden and still be guessed from "
            f"the rest. Use at least {enough}: {backbone.how_to_set(enough)}"
        )
    if any(n % w for n, w in zip(backbone.grid, width, strict=True)):
        fitting: Sequence[int] = [w * b * s for w, b, s in zip(width, blocks, backbone.stride, strict=True)]
        raise BackboneError(
            f"Mask blocks of {mask_tokens} tokens per axis do not tile the {backbone.grid} tokens of the patch "
            f"{backbone.patch_size}. The next valid size is {tuple(fitting)}: {backbone.how_to_set(fitting)}"
        )
    return width
