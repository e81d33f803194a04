"""The Primus transformer as backbone (https://arxiv.org/abs/2503.01835)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssl.backbones.base import Backbone
from nnunet_ssl.backbones.blockwise import embed_blocks, is_blockwise
from nnunet_ssl.errors import BackboneError


def run_blocks(transformer: Any, tokens: Tensor, rope: Tensor | None) -> Tensor:
    """Push tokens [B, N, C] through the blocks and the final norm of an Eva transformer."""
    for block in transformer.blocks:
        tokens = block(tokens, rope=rope)
    return transformer.norm(tokens)


class PrimusBackbone(Backbone):
    """Primus as token encoder and patch decoder.

    Tokens are flattened in natural array order (A0, A1, A2), as Primus does since dynamic-network-architectures 0.4.3;
    nnssl's EvaMAE family swapped the first two axes.
    """

    kind = "primus"

    def __init__(self, network: Any, patch_size: Sequence[int], crop_setting: str | None = None) -> None:
        super().__init__()
        projection = getattr(getattr(network, "down_projection", None), "proj", None)
        if projection is None or not is_blockwise(projection) or not hasattr(network, "eva"):
            raise BackboneError(
                f"{type(network).__name__} has no patch embedding of one convolution, so it is not a Primus (V1) network."
            )
        self.network = network
        self.patch_size, self.crop_setting = tuple(int(s) for s in patch_size), crop_setting
        self.ndim = len(self.patch_size)
        self.stride = tuple(int(s) for s in projection.kernel_size)
        self.mask_unit = self.mask_block = self.stride
        self.in_channels = int(projection.in_channels)
        self.embed_dim = int(projection.out_channels)
        self.feature_channels, self.feature_strides = (self.embed_dim,), (self.stride,)
        self.out_channels = int(network.up_projection.decode[-1].out_channels)
        self.check_size(self.patch_size, "Crop size" if crop_setting else "Patch size")

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens per axis of a full patch."""
        return tuple(s // t for s, t in zip(self.patch_size, self.stride, strict=True))

    def rope(self, keep: Tensor | None = None) -> Tensor | None:
        """Rotary embedding of all tokens [N, 2 * head_dim], or of the kept ones [B, 1, K, 2 * head_dim].

        timm >= 1.0.17 no longer adds the head axis itself: without it the rotation of sample b would silently land on
        head b whenever batch size and number of heads agree.
        """
        module = self.network.eva.rope
        if module is None:
            return None
        full = module.get_embed()
        return full if keep is None else full[keep].unsqueeze(1)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens [B, N, C] of an image [B, C_in, *patch], absolute position embedding not yet added."""
        return embed_blocks(self.network.down_projection.proj, x)

    def encode(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encoded tokens [B, K, C] of embedded tokens [B, N, C].

        `keep` [B, K] holds indices into the N tokens: the others never enter the transformer. None keeps all.
        """
        eva = self.network.eva
        if eva.pos_embed is not None:
            tokens = tokens + eva.pos_embed
        if keep is not None:
            tokens = tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return run_blocks(eva, tokens, self.rope(keep))

    def to_map(self, tokens: Tensor) -> Tensor:
        """Feature map [B, C, *grid] of a full token sequence [B, N, C].

        Contiguous: the transposed view looks like channels_last, and torch's compiler then expects the same of what the
        decoder's transposed convolutions give back, which they do not keep (https://github.com/pytorch/pytorch/issues/171622).
        """
        return tokens.transpose(1, 2).contiguous().unflatten(2, self.grid)

    def features(self, x: Tensor) -> list[Tensor]:
        return [self.to_map(self.encode(self.embed(x)))]

    @property
    def decoder(self) -> nn.Module:
        return self.network.up_projection

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        return self.decoder(features[-1])

    def new_mask_token(self) -> nn.Parameter:
        """One token, [1, 1, C]."""
        return nn.Parameter(nn.init.normal_(torch.zeros(1, 1, self.embed_dim), std=1e-6))

    def masked_image(self, x: Tensor, hidden: Tensor, mask_token: Tensor) -> Tensor:
        """0 where tokens are hidden, which happens after the embedding."""
        return x.masked_fill(hidden, 0)

    def masked_features(self, x: Tensor, hidden: Tensor, mask_token: Tensor) -> list[Tensor]:
        embedded = self.embed(x)  # [B, N, C]; a token holds its own voxels only, so nothing leaks
        # Whole tokens are hidden, so a token's first voxel speaks for all of them.
        corners = tuple(slice(None, None, s) for s in (1, *self.stride))
        hidden_tokens = hidden[:, 0][corners].flatten(1).unsqueeze(-1)
        tokens = torch.where(hidden_tokens, mask_token.to(embedded.dtype), embedded)
        return [self.to_map(self.encode(tokens))]


def scatter_tokens(tokens: Tensor, keep: Tensor, filler: Tensor, num_tokens: int) -> Tensor:
    """Full sequence [B, num_tokens, C]: kept tokens [B, K, C] at their places `keep` [B, K], `filler` [1, 1, C] else."""
    full = filler.to(tokens.dtype).expand(tokens.shape[0], num_tokens, -1)
    return torch.scatter(full, 1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]), tokens)
