"""The three tasks of SwinUNETR's pre-training: undo a cut-out, recognise a turn, recognise the other view.

Tang et al., "Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis" (CVPR 2022,
https://arxiv.org/abs/2111.14791), for any encoder, with the recipe of the OpenMind benchmark (Wald et al., ICCV 2025,
https://arxiv.org/abs/2412.17041).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log, log2
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from nnunet_ssl.backbones import Backbone
from nnunet_ssl.errors import BackboneError
from nnunet_ssl.heads.projector import check_bottleneck
from nnunet_ssl.losses.embeddings import health, knn_agreement
from nnunet_ssl.losses.gather import check_images, global_mean, processes
from nnunet_ssl.losses.nt_xent import equal_embeddings, nt_xent
from nnunet_ssl.losses.reconstruction import constant_error, explained_variance
from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.methods.tensors import Bool, Feature, Float, Whole
from nnunet_ssl.settings.blocks import require
from nnunet_ssl.settings.bounds import NotNegative, Positive, Rate, Share, Width
from nnunet_ssl.views import rng
from nnunet_ssl.views.crops import mostly_usable
from nnunet_ssl.views.cutout import random_cutout
from nnunet_ssl.views.host import to_device
from nnunet_ssl.views.orientation import turn
from nnunet_ssl.views.spec import Views

RECIPE_BATCH, ENOUGH = 8, 4  # images over all processes
HALVES = 2  # of the bottleneck along each axis, whose averages the rotation head is given


@dataclass(frozen=True)
class SwinUNETRConfig:
    """Defaults: OpenMind's recipe as implemented in nnssl, which follows MONAI's research code."""

    rotation_weight: NotNegative = 1.0  # equal weights: the paper and nnssl
    contrast_weight: NotNegative = 1.0  # likewise
    inpainting_weight: NotNegative = 1.0  # likewise
    max_cutout: Rate = 0.3  # largest share of the image cut out per pass, and there are two passes
    min_box: Share = 0.05  # shortest edge of a cut-out box as share of the axis
    max_box: Share = 0.25  # longest edge
    temperature: Positive = 0.5  # nnssl
    embedding_dim: Width = 512  # nnssl and MONAI

    def __post_init__(self) -> None:
        weights = [getattr(self, f"{name}_weight") for name in ("rotation", "contrast", "inpainting")]
        require(max(weights) > 0, "rotation_weight, contrast_weight and inpainting_weight must be not all 0.")
        require(
            self.min_box <= self.max_box,
            f"min_box <= max_box must hold, found {self.min_box} and {self.max_box}.",
        )


class ReconstructionHead(nn.Module):
    """Convolutions that double the resolution of a bottleneck until it is the image's: [N, C, *coarse] -> [N, c, *size].

    Widths follow the encoder's stages back; where it has none, as a Primus, they are halved at every step. All but the
    last convolution are followed by instance norm, LeakyReLU and linear upsampling.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        if backbone.patch_size == backbone.stride:
            enough = tuple(2 * s for s in backbone.stride)
            raise BackboneError(
                f"A patch of {backbone.patch_size} voxels is a single feature at the network's stride, too few to reconstruct "
                f"an image from. Use at least {enough}: {backbone.how_to_set(enough)}"
            )
        self.size = backbone.patch_size
        steps = max(ceil(log2(max(backbone.stride))), 0)
        width = backbone.feature_channels[-1]
        widths = list(reversed(backbone.feature_channels[:-1]))[:steps]
        while len(widths) < steps:
            widths.append(max((widths or [width])[-1] // 2, 8))
        conv = nn.Conv3d if backbone.ndim == 3 else nn.Conv2d
        norm = nn.InstanceNorm3d if backbone.ndim == 3 else nn.InstanceNorm2d
        self.mode = "trilinear" if backbone.ndim == 3 else "bilinear"
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(before, after, 3, padding=1), norm(after), nn.LeakyReLU(0.01))
            for before, after in zip([width, *widths], widths, strict=False)
        )
        self.last = conv([width, *widths][-1], backbone.in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks, start=1):
            # Axes with a smaller stride are done first, as on the way back through a U-Net with thin slices.
            size = tuple(min(2 * s, full) for s, full in zip(x.shape[2:], self.size, strict=True))
            size = self.size if number == len(self.blocks) else size
            x = interpolate(block(x), size=size, mode=self.mode, align_corners=False)
        return self.last(x)


def average_halves(x: Tensor) -> Tensor:
    """Averages of feature maps [N, C, *spatial] over their halves along every axis, [N, C * 2^D].

    Halves of an odd axis share its middle; an axis of one voxel is both.
    """
    for axis, size in enumerate(x.shape[2:], start=2):
        half = (size + 1) // HALVES
        x = torch.cat([x.narrow(axis, start, half).mean(axis, keepdim=True) for start in (0, size - half)], dim=axis)
    return x.flatten(1)


class SwinUNETRInputs(TypedDict):
    """What the task makes of a batch: two views of each image, the first ones of all images, then the second ones."""

    turned: Float  # [2B, C, *patch]: what is to be restored
    cut: Float  # [2B, C, *patch]: what the network sees
    hidden: Bool  # [2B, 1, *patch]: where they differ
    turns: Whole  # [2B], quarters: 0 to 3
    excluded: Bool  # [2B, 1, *patch]


class SwinUNETREncoded(TypedDict):
    """What the task makes of the network's answers."""

    pooled: Feature  # [2B, F]: the bottleneck's average


class SwinUNETRWeighed(SwinUNETREncoded, total=False):
    """And what only some weights need."""

    halves: Feature  # [2B, F * 2^D]: averages of the bottleneck's halves
    reconstructed: Feature  # [2B, C, *patch]


class SwinUNETR(Method):
    """Rotation, contrast and inpainting.

    Two views of every patch are turned by a multiple of 90 degrees in the plane of the last two axes, then boxes are
    cut out and filled with noise, or with what another image of the batch has there. From the bottleneck, heads tell
    the turn (cross entropy), the other view of the same image in the global batch (NT-Xent), and the turned image
    before cutting (L1, excluded voxels left out). The network's decoder is not trained.

    Planes whose sides differ cannot be turned by 90 degrees: there the four classes are unchanged, mirrored along one
    side, turned by 180 degrees, and mirrored along the other. Nothing else mirrors the images, so all four are
    different; an anatomy that is symmetric about one side only leaves two of them to tell.

    nnssl differs: the rotation and contrast heads read one voxel of the bottleneck each (the corner and its neighbour).
    Here contrast reads the average of the bottleneck, and rotation the averages of its halves along every axis, eight in
    3D: which way up an image lies is a matter of where things are, and an average over an instance norm's output is
    nearly the same for every image (benchmarks/LOG.md). Noise was scaled to [0, 1] box by box, here image by image.
    """

    name = "swin_unetr"
    keeps_orientation = False
    trivial_answer = "a guessed turn, equal embeddings and the median grey value"
    Config = SwinUNETRConfig
    Inputs = SwinUNETRInputs
    Encoded = SwinUNETRWeighed
    citation = (
        "Tang Y. et al. (2022). Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis. CVPR. | "
        "Wald T. et al. (2025). An OpenMind for 3D medical vision self-supervised learning. ICCV."
    )

    def __init__(self, backbone: Backbone, config: SwinUNETRConfig) -> None:
        super().__init__(backbone, config)
        check_bottleneck(backbone)
        backbone.freeze_decoder()
        self.images_needed = 2 if config.contrast_weight else 1
        width = backbone.feature_channels[-1]
        if config.rotation_weight:
            self.rotation_head = nn.Linear(width * HALVES**backbone.ndim, 4)
        if config.contrast_weight:
            self.contrast_head = nn.Linear(width, config.embedding_dim)
        if config.inpainting_weight:
            self.reconstruction_head = ReconstructionHead(backbone)

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        size = tuple(int(s) for s in patch_size)
        return Views(region_size=size, network_size=size, rotate_and_scale=0.0, mirror=False)

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        image, config = batch["image"], self.config
        number, size, host = len(image), image.shape[2:], rng.Host(generator)
        if self.training and config.contrast_weight:
            check_images("SwinUNETR's contrast", number, ENOUGH, RECIPE_BATCH, together=True)
        # 1. Two views of each image are turned.
        turns = host.randint(0, 4, 2 * number)
        turned = turn([*image, *image], turns)
        # 2. Boxes of them are filled with noise.
        box = (config.min_box, config.max_box)
        hidden = random_cutout(2 * number, size, config.max_cutout, box, generator)
        noise = rng.randn(turned.shape, generator)
        axes = tuple(range(1, noise.ndim))
        low, high = noise.amin(axes, keepdim=True), noise.amax(axes, keepdim=True)
        cut = torch.where(hidden, noise.sub_(low).div_(high - low), turned)
        # 3. Boxes of them are filled from another image: the one beside it (0 and 1, 2 and 3, ...), which this process has.
        # Drawn blindly, it would now and then be the same image: as often, nothing happens.
        own = np.arange(number)
        beside = np.where((own ^ 1) < number, own ^ 1, max(number - 2, 0))
        foreign = host.rand(2 * number) >= 1 / (number * processes(self.training))
        foreign &= np.tile(own != beside, 2)
        donors = np.concatenate([beside, beside + number]).tolist()
        swapped = random_cutout(2 * number, size, config.max_cutout, box, generator, kept=~foreign)
        rows = foreign.nonzero()[0].tolist()
        for row, swap in [(r, torch.where(swapped[r], cut[donors[r]], cut[r])) for r in rows]:  # of what was cut once
            cut[row] = swap
        return {
            "turned": turned,
            "cut": cut,
            "hidden": hidden | swapped,
            "turns": to_device(turns, image.device),
            "excluded": turn([*batch["excluded"]] * 2, turns),
        }

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        bottleneck = self.backbone.features(inputs["cut"])[-1]  # [2B, F, *coarsest]
        encoded = {"pooled": bottleneck.flatten(2).mean(dim=2)}
        if self.config.rotation_weight:
            encoded["halves"] = average_halves(bottleneck)
        if self.config.inpainting_weight:
            encoded["reconstructed"] = self.reconstruction_head(bottleneck)
        return encoded

    def compare(self, encoded: dict[str, Tensor], inputs: dict[str, Tensor]) -> MethodOutput:
        config, turned, excluded = self.config, inputs["turned"], inputs["excluded"]
        pooled = encoded["pooled"]
        number = len(turned) // 2
        loss = turned.new_zeros(())
        terms: dict[str, Tensor] = {}
        preview = {"input": turned, "corrupted": inputs["cut"], "hidden": inputs["hidden"], "excluded": excluded}
        # 4. How was it turned?
        if config.rotation_weight:
            scores = self.rotation_head(encoded["halves"]).float()
            rotation = cross_entropy(scores, inputs["turns"])
            loss = loss + config.rotation_weight * rotation
            terms["rotation"] = rotation.detach()
            terms["rotation_accuracy"] = (scores.argmax(dim=1) == inputs["turns"]).float().mean()
        # 5. Which is the other view of the same image?
        if config.contrast_weight:
            embeddings = self.contrast_head(pooled)
            views_usable = mostly_usable(excluded)
            usable = views_usable.chunk(2)
            images = torch.arange(number, device=turned.device)
            both = usable[0] & usable[1]
            first, second = embeddings.chunk(2)
            contrast = nt_xent(first, second, images, both, config.temperature, together=self.training)
            loss = loss + config.contrast_weight * contrast.loss
            terms |= {"contrast": contrast.loss.detach(), **contrast.terms, **health(embeddings, views_usable)}
            terms["knn_agreement"] = knn_agreement(first, second, both)
        # 6. What was in the boxes?
        if config.inpainting_weight:
            reconstructed = encoded["reconstructed"]
            counts = (~excluded).float().expand_as(turned)
            inpainting = global_mean((reconstructed.float() - turned).abs(), counts, together=self.training)
            loss = loss + config.inpainting_weight * inpainting
            terms["inpainting"] = inpainting.detach()
            with torch.no_grad():
                everywhere = torch.ones_like(excluded)
                terms["explained_variance"] = explained_variance(reconstructed, turned, everywhere, excluded)
            preview["reconstruction"] = reconstructed.detach()
        return MethodOutput(loss, terms, {k: v[:number] for k, v in preview.items()})

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """The turn guessed, all embeddings equal, the median grey value reconstructed."""
        config, turned, excluded = self.config, inputs["turned"], inputs["excluded"]
        usable = mostly_usable(excluded).chunk(2)
        images = torch.arange(len(turned) // 2, device=turned.device)
        contrast = equal_embeddings(images, usable[0] & usable[1], config.temperature)
        reconstructed = constant_error(turned, ~excluded, "l1")
        guessed = config.rotation_weight * log(4) + config.contrast_weight * contrast
        return guessed + config.inpainting_weight * reconstructed
