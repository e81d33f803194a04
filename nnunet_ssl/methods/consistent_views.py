"""Masked autoencoding of two overlapping views whose features shall agree where the views overlap.

Our reading of "Consistent View Alignment Improves Foundation Models for 3D Medical Image Segmentation" (2025,
https://arxiv.org/abs/2509.13846), which won the SSL3D challenge of MICCAI 2025 with a Primus and came second with a U-Net.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ssl.backbones import Backbone
from nnunet_ssl.heads.projector import BatchStandardise, Projector, check_bottleneck, projector_width
from nnunet_ssl.losses.alignment_loss import alignment_loss
from nnunet_ssl.losses.embeddings import health, knn_agreement
from nnunet_ssl.losses.gather import warn_if_few
from nnunet_ssl.losses.nt_xent import equal_embeddings, nt_xent
from nnunet_ssl.methods.base import MethodOutput
from nnunet_ssl.methods.mae import MAE, MAEConfig, MAETokens
from nnunet_ssl.methods.tensors import Feature, Whole
from nnunet_ssl.settings.blocks import require
from nnunet_ssl.settings.bounds import Count, NotNegative, PerAxis, Positive, Share, Width
from nnunet_ssl.views.crops import (
    box_mask,
    check_crop,
    crop_within,
    cut_views,
    mostly_usable,
    overlapping_corners,
    shared_box,
)
from nnunet_ssl.views.host import to_device
from nnunet_ssl.views.intensity import augment_intensity
from nnunet_ssl.views.roi import coarsen, pool_boxes
from nnunet_ssl.views.spec import Views

VOXELS_PER_CELL = 8  # the finest resolution at which features are compared: a Primus token


@dataclass(frozen=True)
class ConsistentViewsConfig(MAEConfig):
    """Fields of masked autoencoding, and those of the alignment: the authors' published settings, scaled as noted."""

    crop_size: PerAxis | None = None  # voxels; None: up to 0.8 of the patch, 128 of 160 as the authors'
    min_overlap: Share = 0.4  # least part of its volume that a view shares with the other
    max_overlap: Share = 0.8  # most of it; the authors' values
    reconstruction_weight: Positive = 1.0  # the authors' 5; without it the decoder is not used
    # Of 1 - cosine; the authors' 0.5 of 2 - 2 cosine, divided by their 5. Without alignment, use the method mae instead
    alignment_weight: Positive = 0.2
    # Of NT-Xent between whole overlaps; the authors' 0.1, divided by their 5; 0: without
    contrast_weight: NotNegative = 0.02
    temperature: Positive = 0.5  # of NT-Xent
    grid: Count = 7  # cells per axis of the overlap at which features are compared, fewer in small crops
    projector_dim: Width | None = None  # None: 2048, at most 8 times the features of tiny networks
    predictor_dim: Width | None = None  # None: a quarter of the projector, the authors' 512
    augmentation: NotNegative = 1.0  # factor on the probabilities of the intensity changes, 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.min_overlap <= self.max_overlap,
            f"min_overlap <= max_overlap must hold, found {self.min_overlap} and {self.max_overlap}.",
        )


class ConsistentViewsInputs(MAETokens):
    """What the task makes of a batch: as `MAE` of 2B views, the first ones of all images, then the second ones."""

    start: Whole  # [2B, D]: first voxel, within the view, of what both views show
    extent: Whole  # [2B, D]: its size in voxels


class ConsistentViewsEncoded(TypedDict):
    """What the task makes of the network's answers."""

    reconstructed: Feature  # [2B, C, *crop]
    local: Feature  # [2B, cells, F]: what the decoder was given, pooled on a grid over what both views show


class ConsistentViews(MAE):
    """Consistent views: masked autoencoding of two overlapping crops, and alignment of what they have in common.

    Both crops are changed in intensity, masked and reconstructed exactly as in `MAE`. The features that the network's decoder
    receives (U-Nets: all stages of the encoder; Primus: the tokens after the light decoder, where hidden ones exist
    again) are pooled on a common grid over the overlap. Those of one view, through projector and predictor, shall point
    where those of the other point, through the projector and without gradient; and the other way round. A light NT-Xent
    term on whole overlaps keeps images apart.

    This is our reading of the paper's idea with weights and sizes from its public settings, not a copy. The known
    differences: no momentum teacher that sees unmasked views (the other view of the network itself is the target), mean
    squared error instead of Huber loss, no start from a finished MAE. All weights can be set.
    """

    name = "consistent_views"
    trivial_answer = "the mean grey value and unrelated features"
    Config = ConsistentViewsConfig
    Inputs = ConsistentViewsInputs
    Encoded = ConsistentViewsEncoded
    crop_setting = "consistent_views.crop_size"
    citation = (
        "Consistent View Alignment Improves Foundation Models for 3D Medical Image Segmentation (2025). arXiv:2509.13846. "
        "| " + MAE.citation
    )

    def __init__(self, backbone: Backbone, config: ConsistentViewsConfig) -> None:
        # Views are smaller than patches: at least two mask blocks per axis, whatever suited the patch.
        wanted = (config.mask_block,) * backbone.ndim if isinstance(config.mask_block, int) else config.mask_block
        block = tuple(min(b, max(s // 2, 1)) for b, s in zip(wanted, backbone.patch_size, strict=True))
        super().__init__(backbone, replace(config, mask_block=block))
        check_bottleneck(backbone)
        self.images_needed = 2 if config.contrast_weight else 1
        features = sum(backbone.feature_channels)
        width = projector_width(config.projector_dim, features)
        narrow = config.predictor_dim or max(width // 4, 2)
        # Without contrast between samples and without a teacher, norms over the batch are what prevents the collapse
        # to a constant (Chen and He, 2021, section 4.3); with LayerNorms it was complete after twenty steps.
        self.projector = Projector(features, width, width)
        self.projector.append(BatchStandardise(width))
        self.predictor = nn.Sequential(
            nn.Linear(width, narrow), BatchStandardise(narrow), nn.ReLU(), nn.Linear(narrow, width)
        )
        self._features: list[Tensor] = []
        backbone.decoder.register_forward_pre_hook(self._keep_features)

    def _keep_features(self, _decoder: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Remember what the decoder is given while the autoencoder runs."""
        given = arguments[0]
        self._features = [given] if isinstance(given, Tensor) else list(given)

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        patch = tuple(int(s) for s in patch_size)
        crop = config.crop_size or tuple(crop_within(s, 0.5, 0.8) for s in patch)
        check_crop(crop, patch)
        return Views(region_size=patch, network_size=crop)

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        image, config, crop = batch["image"], self.config, self.backbone.patch_size
        if self.training and config.contrast_weight:
            warn_if_few("The contrast of consistent_views", len(image), enough=2, recipe=4, together=True)
        overlap = (config.min_overlap, config.max_overlap)
        first, second = overlapping_corners(len(image), 1, image.shape[2:], crop, overlap, generator)
        # [2B]: the first views of all images, then the second ones.
        both = np.concatenate([first, second], axis=1)
        views, excluded = (cut_views(x, both, crop) for x in (image, batch["excluded"]))
        if self.training:
            views = augment_intensity(views, generator, config.augmentation)
        inputs = super().prepare({"image": views, "excluded": excluded}, generator)
        own, other = (to_device(np.concatenate(c)[:, 0], image.device) for c in ((first, second), (second, first)))
        inputs["start"], inputs["extent"] = shared_box(own, other, crop)
        return inputs

    def forward(self, inputs: dict[str, Tensor]) -> MethodOutput:
        return self.compare(self.encode(inputs), inputs)

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        config, crop = self.config, self.backbone.patch_size
        reconstructed = self.reconstruct(inputs)
        cells = tuple(max(s // VOXELS_PER_CELL, 1) for s in crop)
        maps = [coarsen(f, cells) for f in self._features]
        self._features = []
        grid = tuple(min(config.grid, c) for c in cells)
        boxes = [pool_boxes(m, inputs["start"], inputs["extent"], crop, grid) for m in maps]
        local = torch.cat(boxes, dim=1).flatten(2).transpose(1, 2)  # [2B, cells, F]
        return {"reconstructed": reconstructed, "local": local}

    def compare(self, encoded: dict[str, Tensor], inputs: dict[str, Tensor]) -> MethodOutput:
        config, local = self.config, encoded["local"]
        reconstructed = self.score(encoded["reconstructed"], inputs)
        number = len(inputs["image"]) // 2
        views_usable = mostly_usable(inputs["excluded"])
        projected = self.projector(local, views_usable)
        usable = views_usable.chunk(2)
        both = usable[0] & usable[1]
        aligned = alignment_loss(self.predictor(projected), projected, both, together=self.training)
        loss = config.reconstruction_weight * reconstructed.loss + config.alignment_weight * aligned.loss
        terms = {
            **reconstructed.terms,
            "reconstruction": reconstructed.loss.detach(),
            "alignment": aligned.loss.detach(),
            **aligned.terms,
            **health(projected.flatten(0, 1), views_usable.repeat_interleave(projected.shape[1])),
        }
        first, second = projected.mean(dim=1).chunk(2)
        terms["knn_agreement"] = knn_agreement(first, second, both)
        if config.contrast_weight:
            images = torch.arange(number, device=first.device)
            contrast = nt_xent(first, second, images, both, config.temperature, together=self.training)
            loss = loss + config.contrast_weight * contrast.loss
            terms |= {"contrast": contrast.loss.detach(), "contrast_accuracy": contrast.terms["accuracy"]}
        preview: dict[str, Tensor] = {}
        for half, letter in enumerate("ab"):
            rows = slice(half * number, (half + 1) * number)
            preview |= {f"{name}_{letter}": image[rows] for name, image in reconstructed.preview.items()}
            preview[f"overlap_{letter}"] = box_mask(
                inputs["start"][rows], inputs["extent"][rows], self.backbone.patch_size
            )
        return MethodOutput(loss, terms, preview)

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """The mean grey value, all images alike, and features that have nothing to do with each other.

        Equal features would agree perfectly, but the projector ends in a standardisation over the batch, which equal features
        do not survive; unrelated ones have a cosine of 0, an alignment of 1.
        """
        config, number = self.config, len(inputs["image"]) // 2
        usable = mostly_usable(inputs["excluded"]).chunk(2)
        images = torch.arange(number, device=inputs["image"].device)
        contrast = equal_embeddings(images, usable[0] & usable[1], config.temperature)
        reconstructed = super().yardstick(inputs)
        views = config.alignment_weight + config.contrast_weight * contrast
        return config.reconstruction_weight * reconstructed + views
