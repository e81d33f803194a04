"""VoCo: which parts of the scan does this crop overlap with, and by how much?

Wu et al., "VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image Analysis" (CVPR 2024,
https://arxiv.org/abs/2402.17300), with the recipe of the OpenMind benchmark (Wald et al., ICCV 2025,
https://arxiv.org/abs/2412.17041).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.backbones import Backbone
from nnunet_ssl.heads.projector import (
    Norm,
    Projector,
    check_bottleneck,
    pooled_features,
    projector_width,
)
from nnunet_ssl.losses.embeddings import health
from nnunet_ssl.losses.gather import warn_if_few
from nnunet_ssl.losses.voco_loss import explained, voco_loss
from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.methods.tensors import Bool, Feature, Float, Whole
from nnunet_ssl.settings.blocks import require
from nnunet_ssl.settings.bounds import Count, NotNegative, PerAxis, Width
from nnunet_ssl.views.contrastive import augment_crops
from nnunet_ssl.views.crops import (
    box_mask,
    check_crop,
    crop_within,
    cut_views,
    mostly_usable,
    random_corners,
    shared_fractions,
    whole_crop,
)
from nnunet_ssl.views.host import to_device
from nnunet_ssl.views.masks import upsample_mask
from nnunet_ssl.views.spec import Views

SIMILARITIES = 101  # values between 0 and 1 tried for the yardstick
RECIPE_GRID, RECIPE_CROP = (4, 4, 1), (64, 64, 64)  # OpenMind, from patches of 160^3
RECIPE_BATCH, ENOUGH = 8, 2  # images over all processes
LARGE = 128  # voxels; from this edge on a 3D patch is large enough for the recipe's region of 256x256x64


@dataclass(frozen=True)
class VoCoConfig:
    """Defaults: OpenMind's recipe as implemented in nnssl."""

    crop_size: PerAxis | None = None  # voxels; None: 64^3 of large patches, else about half of the patch
    grid: PerAxis | None = None  # base crops per axis; None: 4x4x1 for large patches, else as many as fit, >= 2
    target_crops: Count = 4  # per image; nnssl (ablated there: 2, 8)
    overlap_weight: NotNegative = 1.0  # of the loss where target and base overlap; the paper and nnssl
    apart_weight: NotNegative = 1.0  # of the loss where they do not
    regularisation_weight: NotNegative = 1.0  # of the term that makes base crops differ
    # Of their similarity: "linear" (the paper's equation, nnssl) or "squared" (its code)
    regularisation: Literal["linear", "squared"] = "linear"
    # Hidden width; None: 2048 (nnssl), at most 8 times the features of tiny networks
    projector_dim: Width | None = None
    embedding_dim: Width | None = None  # None: as wide as the projector (nnssl: 2048)
    projector_norm: Norm = "batch"  # as in the paper, over the crops of all processes; "layer": of each crop, nnssl
    augmentation: NotNegative = 1.0  # factor on the probabilities of nnssl's intensity and orientation changes, 0: none

    def __post_init__(self) -> None:
        require(
            self.grid is None or max(self.grid) >= 2, f"grid must be >= 2 along one axis at least, found {self.grid}."
        )


class VoCoInputs(TypedDict):
    """What the task makes of a batch: K base crops, which tile the region, and T target crops of each image."""

    region: Float  # [B, C, *region]
    excluded: Bool  # [B, 1, *region]
    crops: Float  # [(K + T) * B, C, *crop]: the first base crops of all images, then the second ones, and so on
    usable: Bool  # [B, K + T]: crops that are mostly image
    overlap: Float  # [B, T, K]: share of a target crop that a base crop covers
    target_corners: Whole  # [B, T, D]: first voxels


class VoCoEncoded(TypedDict):
    """What the task makes of the network's answers."""

    features: Feature  # [(K + T) * B, F], pooled over all stages


class VoCo(Method):
    """Volume contrast.

    The region is tiled by base crops; further target crops lie anywhere in it. The similarity of a target to a base
    shall be the part of the target that lies in the base, and different bases shall look different. All comparisons
    are made within an image, so any batch size will do; the means are those of the global batch. The network's decoder
    is not trained. The projector's norm is the paper's, nnssl's was one of each crop (see `Projector`).

    As nnssl, and unlike the paper's code, there is no momentum encoder: the gradient simply stops at the bases. Crops
    mostly made of excluded voxels do not count.
    """

    name = "voco"
    trivial_answer = "crops that are all equally similar"
    Config = VoCoConfig
    Inputs = VoCoInputs
    Encoded = VoCoEncoded
    crop_setting = "voco.crop_size"
    citation = (
        "Wu L., Zhuang J., Chen H. (2024). VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D "
        "Medical Image Analysis. CVPR. | Wald T. et al. (2025). An OpenMind for 3D medical vision self-supervised "
        "learning. ICCV."
    )

    def __init__(self, backbone: Backbone, config: VoCoConfig) -> None:
        super().__init__(backbone, config)
        check_bottleneck(backbone)
        backbone.freeze_decoder()
        features = sum(backbone.feature_channels)
        width = projector_width(config.projector_dim, features)
        self.projector = Projector(features, width, config.embedding_dim or width, config.projector_norm)

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        patch = tuple(int(s) for s in patch_size)
        if config.crop_size is None and config.grid is None and len(patch) == 3 and min(patch) >= LARGE:
            crop, grid = RECIPE_CROP, RECIPE_GRID
        else:
            cells = config.grid or (2,) * len(patch)
            if len(cells) != len(patch):
                raise ValueError(f"grid {cells} has {len(cells)} axes, the patch {patch} has {len(patch)}.")
            crop = config.crop_size or tuple(crop_within(s, 0.5 / g, 1 / g) for s, g in zip(patch, cells, strict=True))
            check_crop(crop, patch)
            grid = config.grid or tuple(max(s // c, 1) for s, c in zip(patch, crop, strict=True))
        if max(grid) < 2:
            raise ValueError(f"A patch of {patch} holds a single crop of {crop}, nothing to tell apart. Set crop_size.")
        region = tuple(g * c for g, c in zip(grid, crop, strict=True))
        return Views(region_size=region, network_size=crop, rotate_and_scale=0.0, mirror=False)

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        image, excluded = batch["image"], batch["excluded"]
        if self.training:
            warn_if_few(
                "VoCo",
                len(image),
                ENOUGH,
                RECIPE_BATCH,
                together=True,
                task="comparing the crops of each image",
                purpose="for steady gradients",
            )
        region, crop = image.shape[2:], self.backbone.patch_size
        # 1. Base crops tile the region, K of them; T target crops lie anywhere in it.
        starts = [range(0, r, c) for r, c in zip(region, crop, strict=True)]
        grid = np.array(list(product(*starts)))  # [K, D] in C order
        targets = random_corners(len(image), self.config.target_crops, region, crop, generator)
        corners = np.concatenate([np.broadcast_to(grid, (len(image), *grid.shape)), targets], axis=1)  # [B, K + T, D]
        # 2. [K + T, B] as one batch: the base crops of all images, then the target crops.
        crops, usable = cut_views(image, corners, crop), mostly_usable(cut_views(excluded, corners, crop))
        return {
            "region": image,
            "excluded": excluded,
            "crops": augment_crops(crops, generator, self.config.augmentation) if self.training else crops,
            "usable": usable.view(-1, len(image)).T,  # [B, K + T]
            "overlap": to_device(shared_fractions(targets, grid, crop), image.device),  # 3. what is to be predicted
            "target_corners": to_device(targets, image.device),
        }

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"features": pooled_features(self.backbone, inputs["crops"])}

    def compare(self, encoded: dict[str, Tensor], inputs: dict[str, Tensor]) -> MethodOutput:
        config, overlap, usable = self.config, inputs["overlap"], inputs["usable"]
        # 4. Embeddings of all crops, [(K + T) * B, E]; the cosine of two is the overlap that they predict.
        bases, embeddings = overlap.shape[2], self.projector(encoded["features"], usable.T.flatten())
        per_image = embeddings.unflatten(0, (-1, len(overlap))).transpose(0, 1)  # [B, K + T, E]
        # 5. Cosines shall be the overlaps, and those of base crops, which have none, 0.
        losses = voco_loss(
            per_image[:, :bases],
            per_image[:, bases:],
            overlap,
            usable[:, :bases],
            usable[:, bases:],
            together=self.training,
            squared=config.regularisation == "squared",
        )
        loss = (
            config.overlap_weight * losses.overlapping
            + config.apart_weight * losses.apart
            + config.regularisation_weight * losses.regularisation
        )
        similarity = losses.similarity
        counted = (usable[:, bases:].unsqueeze(2) & usable[:, :bases].unsqueeze(1)).float()
        sharing, apart = overlap * counted, (overlap == 0) * counted
        terms = {
            "overlapping": losses.overlapping.detach(),
            "apart": losses.apart.detach(),
            "regularisation": losses.regularisation.detach(),
            "positive_similarity": (similarity * sharing).sum() / sharing.sum().clamp(min=1e-8),
            "negative_similarity": (similarity * apart).sum() / apart.sum().clamp(min=1),
            "explained_variance": explained(overlap, similarity, counted),
            **health(embeddings, usable.T.flatten()),
        }
        return MethodOutput(loss, terms, self._preview(inputs, similarity))

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """All crops equally similar, at the similarity that suits best."""
        config, overlap, bases = self.config, inputs["overlap"].unsqueeze(0), inputs["overlap"].shape[2]
        counted = inputs["usable"][:, bases:].unsqueeze(2) & inputs["usable"][:, :bases].unsqueeze(1)
        share = overlap * counted
        similarity = torch.linspace(0, 1, SIMILARITIES, device=overlap.device)
        distance = (overlap - similarity.view(-1, 1, 1, 1)).abs()
        error = -torch.log(1 - distance + 1e-6) * share
        overlapping = error.sum(dim=(1, 2, 3)) / share.sum().clamp(min=1e-8)
        apart = similarity.square() * (counted & (overlap == 0)).any()
        regularised = (similarity.square() if config.regularisation == "squared" else similarity) * (bases > 1)
        return (
            config.overlap_weight * overlapping
            + config.apart_weight * apart
            + config.regularisation_weight * regularised
        ).min()

    def _preview(self, inputs: dict[str, Tensor], similarity: Tensor) -> dict[str, Tensor]:
        """The base grid, the first target crop in it, and the overlap of both, true and guessed.

        Overlaps are shares of the target crop, 0 to 1.
        """
        region, overlap = inputs["region"], inputs["overlap"]
        size, crop = tuple(region.shape[2:]), self.backbone.patch_size
        grid = tuple(s // c for s, c in zip(size, crop, strict=True))
        start = inputs["target_corners"][:, 0]
        extent = whole_crop(start, crop)
        number = torch.arange(1, overlap.shape[2] + 1, device=region.device).expand(len(region), -1)

        def paint(values: Tensor) -> Tensor:
            return upsample_mask(values.reshape(len(region), *grid), crop, size)

        return {
            "region": region,
            "base_crops": paint(number),
            "target_crop": box_mask(start, extent, size),
            "overlap_share": paint(overlap[:, 0]),
            "predicted_share": paint(similarity[:, 0]),
            "excluded": inputs["excluded"],
        }
