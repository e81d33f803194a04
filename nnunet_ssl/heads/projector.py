"""From an encoder to one embedding per image: pooled features and a projector, as VoCo and SimCLR use them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from nnunet_ssl.backbones import Backbone
from nnunet_ssl.errors import BackboneError
from nnunet_ssl.losses.gather import global_sum


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

    def forward(self, x: Tensor, usable: Tensor | None = None) -> Tensor:
        return super().forward(x)


class BatchStandardise(nn.Module):
    """BatchNorm without weights and running statistics: each feature of [N, ..., E] over all rows of all processes.

    Rows that are not usable, bool [N], do not count. In evaluation, each process is on its own.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor, usable: Tensor | None = None) -> Tensor:
        weight = torch.ones_like(x[..., :1], dtype=torch.float32)
        if usable is not None:
            weight = weight * usable.view(-1, *[1] * (x.ndim - 1))
        rows, weight = x.float().reshape(-1, self.features), weight.reshape(-1, 1)
        counted = weight.sum().expand(self.features)
        sums = torch.stack([(rows * weight).sum(dim=0), (rows.square() * weight).sum(dim=0), counted])
        total, squares, number = global_sum(sums, together=self.training)
        number = number.clamp(min=1)
        mean = total / number
        variance = (squares / number - mean.square()).clamp(min=0)
        return (x - mean) / (variance + 1e-5).sqrt()


Norm = Literal["batch", "layer"]  # what a method's settings may say
NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": BatchStandardise, "layer": LayerStandardise}


class Projector(nn.Sequential):
    """Linear, norm, ReLU, Linear, norm, ReLU, Linear: [N, in_features] -> [N, out_features].

    The norm is a BatchNorm over the crops of all processes, as in the papers of SimCLR and VoCo. A network with instance norms
    gives pooled features that are nearly the same for every image: of these, a LayerNorm makes embeddings that all but coincide
    (cosine 0.999 before the first step), and SimCLR then collapses to one direction; a BatchNorm takes what they have in common
    away (benchmarks/LOG.md). "layer" is what the InstanceNorm1d of nnssl amounts to on [N, C].
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int, norm: str = "batch") -> None:
        super().__init__(
            nn.Linear(in_features, hidden_features),
            NORMS[norm](hidden_features),
            nn.ReLU(),
            nn.Linear(hidden_features, hidden_features),
            NORMS[norm](hidden_features),
            nn.ReLU(),
            nn.Linear(hidden_features, out_features),
        )

    def forward(self, x: Tensor, usable: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, usable) if isinstance(layer, (BatchStandardise, LayerStandardise)) else layer(x)
        return x


class PrototypeHead(nn.Module):
    """A projector to a narrow embedding [N, E], and its cosines [N, K] with learned prototypes.

    DINO (Caron et al., ICCV 2021, section 3.2 and its appendix C): an MLP with a bottleneck, L2 norm, and a last layer whose
    weights have the norm 1. Its own has GELU; norms over the batch are an option of it, which its transformers do without.
    """

    def __init__(self, in_features: int, hidden_features: int, embedding_features: int, prototypes: int) -> None:
        super().__init__()
        self.projector = Projector(in_features, hidden_features, embedding_features)
        self.norm = BatchStandardise(embedding_features)
        self.prototypes = nn.Parameter(torch.empty(prototypes, embedding_features))
        # Directions are even over the sphere. Short ones turn fast, as only that counts: DINO's 0.02
        nn.init.normal_(self.prototypes, std=0.02)

    def forward(self, features: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
        """features: [N, F]. usable: bool [N], False for rows that do not count."""
        x = self.norm(self.projector(features, usable), usable)
        with torch.autocast(x.device.type, enabled=False):  # at a temperature of 0.04 bfloat16 is off by a tenth
            return x, linear(normalize(x, dim=-1), normalize(self.prototypes, dim=-1))


def check_bottleneck(backbone: Backbone) -> None:
    """Raise BackboneError when a U-Net's coarsest feature map is a single voxel, which its norms make zero of.

    Warn where it has less than two positions per axis: features that are pooled from so few see nothing of where things are.
    """
    if backbone.kind == "unet" and backbone.patch_size == backbone.stride:
        enough = tuple(2 * s for s in backbone.stride)
        raise BackboneError(
            f"{backbone.patch_size} voxels leave a single voxel at the network's stride of {backbone.stride}, and "
            f"normalising one voxel leaves nothing. Use at least {enough}: {backbone.how_to_set(enough)}"
        )
    grid = tuple(p // s for p, s in zip(backbone.patch_size, backbone.stride, strict=True))
    if prod(grid) < 2**backbone.ndim:
        enough = tuple(max(2 * s, p) for p, s in zip(backbone.patch_size, backbone.stride, strict=True))
        warnings.warn(
            f"{backbone.patch_size} voxels are little for this network: {grid} positions at its stride of {backbone.stride} are "
            f"all that its deepest features have of an image. {enough} or more is better: {backbone.how_to_set(enough)}",
            stacklevel=2,
        )
