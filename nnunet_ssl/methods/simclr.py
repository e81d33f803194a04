"""SimCLR: two crops of the same place look alike, crops of different images do not.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (ICML 2020,
https://arxiv.org/abs/2002.05709), with the recipe of the OpenMind benchmark (Wald et al., ICCV 2025,
https://arxiv.org/abs/2412.17041) for 3D medical images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

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
from nnunet_ssl.losses.embeddings import health, knn_agreement
from nnunet_ssl.losses.gather import check_images
from nnunet_ssl.losses.nt_xent import equal_embeddings, nt_xent
from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.methods.tensors import Bool, Feature, Float, Whole
from nnunet_ssl.settings.blocks import require
from nnunet_ssl.settings.bounds import Count, NotNegative, PerAxis, Positive, Share, Width
from nnunet_ssl.views.contrastive import augment_crops
from nnunet_ssl.views.crops import (
    box_mask,
    check_crop,
    crop_within,
    cut_views,
    mostly_usable,
    overlapping_corners,
    shared_box,
    whole_crop,
)
from nnunet_ssl.views.host import to_device
from nnunet_ssl.views.spec import Views

RECIPE_REGION, RECIPE_CROP = (192, 192, 64), (64, 64, 64)  # OpenMind, from patches of 160^3
LARGE = 128  # voxels; from this edge on a 3D patch is large enough for the recipe's region
RECIPE_BATCH, ENOUGH = 32, 8  # images over all processes


@dataclass(frozen=True)
class SimCLRConfig:
    """Defaults: OpenMind's recipe as implemented in nnssl, with the overlap meant as it is called."""

    crop_size: PerAxis | None = None  # voxels; None: 64^3 of large patches, 1/2 to 3/4 of the patch of others
    region_size: PerAxis | None = None  # voxels; None: 192x192x64 for large patches, else the patch
    pairs_per_image: Count = 2  # nnssl; pairs of one image are never each other's negatives
    min_overlap: Share = 0.5  # nnssl's value; least part of its volume that a crop shares with its partner
    max_overlap: Share = 1.0  # nnssl: partners may coincide
    temperature: Positive = 0.5  # nnssl, and the SimCLR paper's value for ImageNet at small batches
    # Hidden width; None: 2048 (nnssl), at most 8 times the features of tiny networks
    projector_dim: Width | None = None
    embedding_dim: Width | None = None  # None: as wide as the projector (nnssl: 2048)
    projector_norm: Norm = "batch"  # as in the paper, over the crops of all processes; "layer": of each crop, nnssl
    augmentation: NotNegative = 1.0  # factor on the probabilities of nnssl's intensity and orientation changes, 0: none

    def __post_init__(self) -> None:
        require(
            self.min_overlap <= self.max_overlap,
            f"min_overlap <= max_overlap must hold, found {self.min_overlap} and {self.max_overlap}.",
        )


class SimCLRInputs(TypedDict):
    """What the task makes of a batch: P pairs of crops of each image."""

    region: Float  # [B, C, *region]
    excluded: Bool  # [B, 1, *region]
    views: Float  # [2 * P * B, C, *crop]: the first half holds the references, the second their partners
    usable: Bool  # [2 * P * B]: crops that are mostly image
    corners: Whole  # [B, 2 * P, D]: first voxels
    first_excluded: Bool  # [2 * B, 1, *crop]: of the first pair of each image


class SimCLREncoded(TypedDict):
    """What the task makes of the network's answers."""

    features: Feature  # [2 * P * B, F], pooled over all stages


class SimCLR(Method):
    """Contrastive learning of crops.

    Pairs of crops of one region that share at least `min_overlap` of their volume are changed independently; the
    encoder's pooled features and a projector embed them, and NT-Xent asks each for its partner among the crops of all
    other images of the global batch. The network's decoder is not trained.

    nnssl differs: its `min_overlap_ratio` was the largest shift per axis (at 0.5 a pair may share as little as an
    eighth of its volume); two pairs of one image may coincide and were negatives of each other; negatives came from
    the process' own batch only. The projector's norm is the paper's,
    nnssl's was one of each crop (see `Projector`). A pair mostly made of excluded voxels does not count here.
    """

    name = "simclr"
    trivial_answer = "equal embeddings"
    Config = SimCLRConfig
    Inputs = SimCLRInputs
    Encoded = SimCLREncoded
    crop_setting = "simclr.crop_size"
    images_needed = 2
    citation = (
        "Chen T., Kornblith S., Norouzi M., Hinton G. (2020). A Simple Framework for Contrastive Learning of Visual "
        "Representations. ICML. | Wald T. et al. (2025). An OpenMind for 3D medical vision self-supervised learning. ICCV."
    )

    def __init__(self, backbone: Backbone, config: SimCLRConfig) -> None:
        super().__init__(backbone, config)
        check_bottleneck(backbone)
        backbone.freeze_decoder()
        features = sum(backbone.feature_channels)
        width = projector_width(config.projector_dim, features)
        self.projector = Projector(features, width, config.embedding_dim or width, config.projector_norm)

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        patch = tuple(int(s) for s in patch_size)
        large = len(patch) == 3 and min(patch) >= LARGE
        region = config.region_size or (RECIPE_REGION if large else patch)
        fitting = RECIPE_CROP if large else tuple(crop_within(s, 0.5, 0.75) for s in region)
        crop = config.crop_size or fitting
        check_crop(crop, region)
        return Views(region_size=region, network_size=crop, rotate_and_scale=0.0, mirror=False)

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        image, excluded = batch["image"], batch["excluded"]
        if self.training:
            check_images("SimCLR", len(image), ENOUGH, RECIPE_BATCH, together=True)
        crop, pairs = self.backbone.patch_size, self.config.pairs_per_image
        overlap = (self.config.min_overlap, self.config.max_overlap)
        first, second = overlapping_corners(len(image), pairs, image.shape[2:], crop, overlap, generator)
        corners = np.concatenate([first, second], axis=1)  # [B, 2 * pairs, D]
        # [2 * pairs, B] as one batch: the first half holds the references, the second their partners.
        crops, not_image = cut_views(image, corners, crop), cut_views(excluded, corners, crop)
        usable, number = mostly_usable(not_image), len(image)
        views = augment_crops(crops, generator, self.config.augmentation) if self.training else crops
        return {
            "region": image,
            "excluded": excluded,
            "views": views,
            "usable": usable,
            "corners": to_device(corners, image.device),
            "first_excluded": torch.cat([not_image[:number], not_image[pairs * number :][:number]]),
        }

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"features": pooled_features(self.backbone, inputs["views"])}

    def compare(self, encoded: dict[str, Tensor], inputs: dict[str, Tensor]) -> MethodOutput:
        embeddings = self.projector(encoded["features"], inputs["usable"])
        first, second = embeddings.chunk(2)
        usable = inputs["usable"].chunk(2)
        image = torch.arange(len(inputs["region"]), device=first.device).repeat(self.config.pairs_per_image)
        result = nt_xent(first, second, image, usable[0] & usable[1], self.config.temperature, together=self.training)
        images = len(inputs["region"])  # one pair of each: pairs of one image are alike in any case
        agreement = knn_agreement(first[:images], second[:images], (usable[0] & usable[1])[:images])
        terms = {**result.terms, **health(embeddings, inputs["usable"]), "knn_agreement": agreement}
        return MethodOutput(result.loss, terms, self._preview(inputs))

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """All embeddings equal."""
        first, second = inputs["usable"].chunk(2)
        images = torch.arange(len(inputs["region"]), device=first.device).repeat(self.config.pairs_per_image)
        return equal_embeddings(images, first & second, self.config.temperature)

    def _preview(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first pair of every image: where it lies in the region, and what the network saw."""
        region, corners, pairs = inputs["region"], inputs["corners"], self.config.pairs_per_image
        crop, number = self.backbone.patch_size, len(region)
        first, second = corners[:, 0], corners[:, pairs]
        size = whole_crop(first, crop)
        places = [box_mask(start, size, region.shape[2:]) for start in (first, second)]
        reference, partner = inputs["views"][:number], inputs["views"][pairs * number :][:number]
        start, extent = shared_box(first, second, crop)
        return {
            "region": region,
            "reference_crop": places[0],
            "partner_crop": places[1],
            "reference": reference,
            "overlap_of_reference": box_mask(start, extent, crop),
            "partner": partner,
            "excluded": inputs["excluded"],
            "excluded_of_reference": inputs["first_excluded"][:number],
            "excluded_of_partner": inputs["first_excluded"][number:],
        }
