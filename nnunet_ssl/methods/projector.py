"""From an encoder to one embedding per image: pooled features and a projector, as VoCo and SimCLR use them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nnunet_ssl.backbones import Backbone, PrimusBackbone
from nnunet_ssl.errors import BackboneError
from nnunet_ssl.methods.gather import global_sum


def pooled_features(backbone: Backbone, x: Tensor) -> Tensor:
    """Global averages of all feature maps of the encoder: [N, C, *spatial] -> [N, sum of feature channels]."""
    return torch.cat([f.flatten(2).mean(dim=2) for f in backbone.features(x)], dim=1)


def projector_width(wanted: int | None, in_features: int) -> int:
    """Width of a projector: as wanted, else the recipe's 2048, but at most eight times its input for tiny networks."""
    return min(2048, 8 * in_features) if wanted is None else wanted


class LayerStandardise(nn.LayerNorm):
    """LayerNorm without weights."""

    def __init__(self, features: int) -> None:
        super().__init__(features, elementwise_affine=False)


class BatchStandardise(nn.Module):
    """BatchNorm without weights and running statistics: each feature of [..., E] over all rows of all processes.

    In evaluation, each process is on its own.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        rows = x.float().reshape(-1, self.features)
        sums = torch.stack([rows.sum(dim=0), rows.square().sum(dim=0), torch.full_like(rows[0], len(rows))])
        total, squares, number = global_sum(sums, together=self.training)
        mean = total / number
        variance = (squares / number - mean.square()).clamp(min=0)
        return (x - mean) / (variance + 1e-5).sqrt()


class Projector(nn.Sequential):
    """Linear, norm, ReLU, Linear, norm, ReLU, Linear: [N, in_features] -> [N, out_features].

    The norm is a LayerNorm without weights. This is what the InstanceNorm1d of nnssl amounts to on [N, C]; unlike the
    BatchNorm of the SimCLR and VoCo papers it works with any batch size and leaks nothing between samples.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        norm: Callable[[int], nn.Module] = LayerStandardise,
    ) -> None:
        super().__init__(
            nn.Linear(in_features, hidden_features),
            norm(hidden_features),
            nn.ReLU(),
            nn.Linear(hidden_features, hidden_features),
            norm(hidden_features),
            nn.ReLU(),
            nn.Linear(hidden_features, out_features),
        )


def train_encoder_only(backbone: Backbone) -> None:
    """Freeze the network's own decoder, which a task without one must not wait for gradients of."""
    network = backbone.network
    primus = isinstance(backbone, PrimusBackbone)
    # A U-Net's decoder holds the encoder as well.
    encoder = set() if primus else {id(p) for p in network.encoder.parameters()}
    decoder = network.up_projection if primus else network.decoder
    for parameter in decoder.parameters():
        if id(parameter) not in encoder:
            parameter.requires_grad_(False)


def check_bottleneck(backbone: Backbone) -> None:
    """Raise BackboneError when a U-Net's coarsest feature map is a single voxel, which its norms make zero of."""
    if backbone.kind == "unet" and backbone.patch_size == backbone.stride:
        enough = tuple(2 * s for s in backbone.stride)
        raise BackboneError(
            f"{backbone.patch_size} voxels leave a single voxel at the network's stride of {backbone.stride}, and "
            f"normalising one voxel leaves nothing. Use at least {enough}: {backbone.how_to_set(enough)}"
        )
