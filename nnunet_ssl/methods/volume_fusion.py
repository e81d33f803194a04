"""VolumeFusion: tell, voxel by voxel, in which proportion two images were mixed.

Wang et al., "MIS-FM: 3D Medical Image Segmentation using Foundation Models Pretrained on a Large-Scale Unannotated
Dataset" (2023, https://arxiv.org/abs/2306.16925), with the recipe of the OpenMind benchmark (Wald et al., ICCV 2025,
https://arxiv.org/abs/2412.17041).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import torch
from torch import Tensor

from nnunet_ssl.losses.segmentation_loss import accuracy, segmentation_loss
from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.methods.tensors import Bool, Float, Whole
from nnunet_ssl.settings.blocks import require
from nnunet_ssl.settings.bounds import Bounds, Count, NotNegative, Share
from nnunet_ssl.views import rng
from nnunet_ssl.views.fusion import fuse, random_levels
from nnunet_ssl.views.intensity import augment_intensity
from nnunet_ssl.views.spec import Views

# For the yardstick: draws of fusion levels, from which to learn how often each place has which, and voxels per axis it is
# computed on.
DRAWS, CHUNK, ENOUGH_VOXELS = 256, 16, 32
LOW_RESOLUTION = 0.25  # share of images whose resolution is lowered; nnssl's other methods take 0.1


@dataclass(frozen=True)
class VolumeFusionConfig:
    """Defaults: OpenMind's recipe as implemented in nnssl, which follows MIS-FM."""

    # Proportions of the foreground image, evenly spaced from 0 to 1, one class each
    levels: Annotated[int, Bounds(ge=2)] = 5
    boxes: tuple[Count, Count] = (10, 39)  # fewest and most boxes per image, each over the ones before
    min_box: Count = 8  # shortest edge of a box in voxels, at most an eighth of the axis
    max_box: Share = 0.625  # longest edge as share of the axis: 100 voxels of 160
    ce_weight: NotNegative = 1.0  # of the cross entropy; equal weights: nnssl
    dice_weight: NotNegative = 1.0  # of the soft Dice
    # Factor on the probabilities of nnssl's intensity changes before the fusion, 0: none
    augmentation: NotNegative = 1.0

    def __post_init__(self) -> None:
        require(self.boxes[0] <= self.boxes[1], f"boxes is a pair (fewest, most), found {self.boxes}.")
        require(self.ce_weight + self.dice_weight > 0, "ce_weight and dice_weight must be not both 0.")


class VolumeFusionInputs(TypedDict):
    """What the task makes of a batch of pairs."""

    foreground: Float  # [B, C, *patch]
    background: Float  # [B, C, *patch]
    fused: Float  # [B, C, *patch]
    level: Whole  # [B, 1, *patch], 0 (background alone) to `levels` - 1
    excluded: Bool  # [B, 1, *patch], in either image


class VolumeFusion(Method):
    """Segmentation of fusion levels; U-Nets and Primus, 2D and 3D.

    Two images are drawn per sample. Their intensities are changed independently (in training only), then a foreground
    is mixed into the background in random boxes, each at one of K levels: everywhere else level 0, all background. The
    whole network, decoder included, segments the levels. Loss: cross entropy plus soft Dice, excluded voxels of either
    image left out.

    Differs from nnssl: (1) patches come from anywhere in the images, not from their centres; (2) anonymised voxels do
    not count; (3) along axes below 64 voxels, where 8 voxels are more than an eighth, boxes may be narrower than that
    (MIS-FM's smallest axis has 64).
    """

    name = "volume_fusion"
    trivial_answer = "the best guess by the place alone"
    Config = VolumeFusionConfig
    Inputs = VolumeFusionInputs
    citation = (
        "Wang G., Wu J., Luo X., Liu X., Li K., Zhang S. (2023). MIS-FM: 3D Medical Image Segmentation using Foundation "
        "Models Pretrained on a Large-Scale Unannotated Dataset. arXiv:2306.16925. | "
        "Wald T. et al. (2025). An OpenMind for 3D medical vision self-supervised learning. ICCV."
    )

    _frequencies: Tensor | None = None  # of the levels by place, made when first asked for

    @classmethod
    def output_channels(cls, config: Any, in_channels: int) -> int:
        return config.levels

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        size = tuple(int(s) for s in patch_size)
        return Views(region_size=size, network_size=size, regions=2, rotate_and_scale=0.0)

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        config, image = self.config, batch["image"]
        if self.training:
            both = rng.by_image(generator, image.shape[1])
            image = augment_intensity(
                image.flatten(0, 1), both, config.augmentation, low_resolution=LOW_RESOLUTION
            ).view_as(image)
        foreground, background = image.unbind(dim=1)
        level = random_levels(
            len(image), image.shape[3:], config.levels, config.boxes, config.min_box, config.max_box, generator
        )
        return {
            "foreground": foreground,
            "background": background,
            "fused": fuse(foreground, background, level, config.levels),
            "level": level,
            "excluded": torch.logical_or(*batch["excluded"].unbind(dim=1)),
        }

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"counted": (~inputs["excluded"]).sum()}

    def forward(self, inputs: dict[str, Tensor]) -> MethodOutput:
        level, counted = inputs["level"], ~inputs["excluded"]
        logits = self.backbone(inputs["fused"])
        cross_entropy, dice = segmentation_loss(logits, level, counted, inputs.get("counted"))
        loss = self.config.ce_weight * cross_entropy - self.config.dice_weight * dice
        with torch.no_grad():
            right, majority = accuracy(logits, level, counted)
        terms = {"ce": cross_entropy.detach(), "dice": dice.detach(), "accuracy": right, "majority_accuracy": majority}
        preview = {name: inputs[name] for name in ("foreground", "background", "fused")}
        preview |= {"levels": level, "prediction": logits.detach().argmax(dim=1, keepdim=True)}
        preview["excluded"] = inputs["excluded"]
        return MethodOutput(loss, terms, preview)

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Probabilities of the levels that depend on the place alone, the best ones there are for both losses together."""
        config, size = self.config, inputs["level"].shape[2:]
        thin = (slice(None), slice(None), *(slice(None, None, max(1, s // ENOUGH_VOXELS)) for s in size))
        level, counted = inputs["level"][thin], ~inputs["excluded"][thin]
        places = self._level_frequencies(size, level.device)[thin[1:]].log()
        scale = torch.ones(1, device=level.device, requires_grad=True)
        offset = torch.zeros(config.levels, *(1,) * (level.ndim - 2), device=level.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([scale, offset], max_iter=30, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            logits = (scale * places + offset).expand(len(level), -1, *level.shape[2:])
            cross_entropy, dice = segmentation_loss(logits, level, counted)
            return config.ce_weight * cross_entropy - config.dice_weight * dice

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(closure)
        return loss().detach()

    def _level_frequencies(self, size: Sequence[int], device: torch.device) -> Tensor:
        """How often each voxel has each level [K, *size]: boxes rarely reach the border, so places differ."""
        if self._frequencies is not None and self._frequencies.shape[1:] == tuple(size):
            return self._frequencies
        config, generator = self.config, torch.Generator(device).manual_seed(0)
        classes = torch.arange(config.levels, device=device).view(1, -1, *(1,) * len(size))
        number = torch.ones(config.levels, *size, device=device)
        for _ in range(DRAWS // CHUNK):
            drawn = random_levels(CHUNK, size, config.levels, config.boxes, config.min_box, config.max_box, generator)
            number += (drawn == classes).sum(dim=0)
        self._frequencies = number / number.sum(dim=0)
        return self._frequencies
