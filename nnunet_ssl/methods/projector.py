"""From an encoder to one embedding per image: pooled features and a projector, as VoCo and SimCLR use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from nnunet_ssl.backbones import Backbone, BackboneError, PrimusBackbone
from nnunet_ssl.methods.gather import global_sum


def pooled_features(backbone: Backbone, x: Tensor) -> Tensor:
    """Global averages of all feature maps of the encoder: [N, C, *spatial] -> [N, sum of feature channels]."""
    return torch.cat([f.flatten(2).mean(dim=2) for f in backbone.features(x)], dim=1)


def cell_features(maps: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """Feature maps [N, C_i, *spatial_i] side by side on one grid of cells: [N, cells, sum of C_i], the cells in C order.

    Averages over a cell where a map is finer than the grid, repeated where it is coarser; one must be a multiple of the other.
    """
    columns = []
    for features in maps:
        sizes = features.shape[2:]
        blocks = features
        for axis, (size, cells) in enumerate(zip(sizes, grid, strict=True)):
            blocks = blocks.unflatten(2 + 2 * axis, (min(size, cells), max(size // cells, 1)))
        means = blocks.mean(dim=tuple(range(3, 3 + 2 * len(grid), 2)))
        for axis, (size, cells) in enumerate(zip(sizes, grid, strict=True), start=2):
            means = means.repeat_interleave(cells // size, dim=axis) if cells > size else means
        columns.append(means.flatten(2))
    return torch.cat(columns, dim=1).transpose(1, 2)


def projector_width(wanted: int | None, in_features: int) -> int:
    """Width of a projector: as wanted, else the recipe's 2048, but at most eight times its input for tiny networks."""
    return min(2048, 8 * in_features) if wanted is None else wanted


class LayerStandardise(nn.LayerNorm):
    """LayerNorm without weights."""

    def __init__(self, features: int) -> None:
        super().__init__(features, elementwise_affine=False)


def standardised(rows: Tensor, weight: Tensor, together: bool) -> Tensor:
    """Each feature of [N, E] with mean 0 and deviation 1 over the rows that count, of all processes if `together`; float32.

    weight: [N], 0 for rows that do not count.
    """
    rows, weight = rows.float(), weight.unsqueeze(1)
    sums = torch.stack(
        [(rows * weight).sum(dim=0), (rows.square() * weight).sum(dim=0), weight.sum().expand(rows.shape[1])]
    )
    total, squares, number = global_sum(sums, together)
    number = number.clamp(min=1)
    mean = total / number
    variance = (squares / number - mean.square()).clamp(min=0)
    return (rows - mean) / (variance + 1e-5).sqrt()


class BatchStandardise(nn.Module):
    """BatchNorm without weights and running statistics: each feature of [..., E] over all rows of all processes.

    In evaluation, each process is on its own.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.features)
        return standardised(rows, rows.new_ones(len(rows)), together=self.training).view(x.shape)


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


class PrototypeHead(nn.Module):
    """Three layers to a narrow embedding [N, E], and its cosines [N, K] with learned prototypes.

    DINO (Caron et al., ICCV 2021, section 3.2 and its appendix C): an MLP with a bottleneck, L2 norm, and a last layer whose
    weights have the norm 1. Each layer of the MLP is followed by a BatchNorm without weights over the rows that count of all
    processes, an option of DINO's, which its transformers do without.
    """

    def __init__(self, in_features: int, hidden_features: int, embedding_features: int, prototypes: int) -> None:
        super().__init__()
        widths = (in_features, hidden_features, hidden_features, embedding_features)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.prototypes = nn.Parameter(torch.empty(prototypes, embedding_features))
        # Directions are even over the sphere. Short ones turn fast, as only that counts: DINO's 0.02
        nn.init.normal_(self.prototypes, std=0.02)

    def forward(self, features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """features: [N, F]. weight: [N], 0 for rows that do not count."""
        x = features
        for number, layer in enumerate(self.layers):
            x = standardised(layer(x if number == 0 else x.relu()), weight, together=self.training)
        with torch.autocast(x.device.type, enabled=False):  # at a temperature of 0.04 bfloat16 is off by a tenth
            return x, linear(normalize(x, dim=-1), normalize(self.prototypes, dim=-1))


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
