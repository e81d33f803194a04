"""What a pretext task may ask of a network, whatever its architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_ssl.errors import BackboneError


class Backbone(nn.Module):
    """A bare nnU-Net network and the questions a method may put to it.

    `network` keeps its own parameter names, so that `backbone.network.state_dict()` is what nnU-Net loads.
    The backbone itself has no parameters of its own.
    """

    kind: str
    network: Any  # an nn.Module; what it has beyond that depends on the architecture
    ndim: int
    patch_size: tuple[int, ...]  # voxels the network is built for
    crop_setting: str | None  # "method.field" that sets this size where the network sees crops
    in_channels: int
    out_channels: int
    stride: tuple[int, ...]  # voxels per position of the coarsest feature map; the patch must be a multiple of it
    feature_channels: tuple[int, ...]  # channels of each feature map, finest first
    feature_strides: tuple[tuple[int, ...], ...]  # voxels per position of each of them
    mask_unit: tuple[int, ...]  # voxels per axis that can only be hidden together, in `masked_features`
    mask_block: tuple[int, ...]  # voxels per axis of the blocks that the OpenMind benchmark hides

    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of the encoder, finest first: [B, C_i, *spatial_i] for an image [B, C, *spatial]."""
        raise NotImplementedError

    @property
    def decoder(self) -> nn.Module:
        """The network's own decoder, which `decode` calls."""
        raise NotImplementedError

    def new_mask_token(self) -> nn.Parameter:
        """What stands where something is hidden, to be learned by a task."""
        raise NotImplementedError

    def masked_image(self, x: Tensor, hidden: Tensor, mask_token: Tensor) -> Tensor:
        """What is seen of images [B, C, *spatial], for pictures; `hidden` bool [B, 1, *spatial] in whole `mask_unit`s."""
        raise NotImplementedError

    def masked_features(self, x: Tensor, hidden: Tensor, mask_token: Tensor) -> list[Tensor]:
        """`features` of images of which the mask token takes the place of what is hidden; arguments as in `masked_image`."""
        raise NotImplementedError

    def freeze_decoder(self) -> None:
        """For tasks that do not use it: its parameters must not wait for gradients."""
        self.decoder.requires_grad_(False)

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Output [B, out_channels, *spatial] of the network's own decoder for `features`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The whole network: [B, C, *spatial] -> [B, out_channels, *spatial]."""
        return self.decode(self.features(x))

    def check_size(self, size: Sequence[int], what: str) -> None:
        """Raise BackboneError naming the next valid size when `size` voxels do not fit the strides."""
        if len(size) != self.ndim:
            raise BackboneError(f"{what} {tuple(size)} has {len(size)} axes, the network has {self.ndim}.")
        if any(s % d for s, d in zip(size, self.stride, strict=True)):
            larger = tuple(-(-s // d) * d for s, d in zip(size, self.stride, strict=True))
            smaller = tuple(max(s // d, 1) * d for s, d in zip(size, self.stride, strict=True))
            below = f", the one below it {smaller}: {self.how_to_set(smaller)}" if smaller != larger else ""
            raise BackboneError(
                f"{what} {tuple(size)} is not a multiple of the network's stride {self.stride}. "
                f"The next valid size is {larger}: {self.how_to_set(larger)}{below}"
            )

    def how_to_set(self, size: Sequence[int]) -> str:
        """The flag of `nnUNetv2_pretrain` that makes the network see `size` voxels."""
        if self.crop_setting is None:
            return f"--patch-size {' '.join(map(str, size))}"
        return f"--set {self.crop_setting}=[{','.join(map(str, size))}]"
