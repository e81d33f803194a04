"""Models Genesis: restore an image from shuffled, recoloured and painted-over versions of itself.

Zhou et al., "Models Genesis" (Medical Image Analysis 2021, https://arxiv.org/abs/2004.07882), with the settings of the
OpenMind benchmark (Wald et al., ICCV 2025, https://arxiv.org/abs/2412.17041).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.losses.reconstruction import Loss, constant_error, explained_variance, masked_error
from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.methods.tensors import Bool, Float
from nnunet_ssl.settings.bounds import Count, PerAxis, Probability
from nnunet_ssl.views import rng
from nnunet_ssl.views.bezier import bezier_intensity
from nnunet_ssl.views.flips import random_flips
from nnunet_ssl.views.local_shuffle import local_shuffle
from nnunet_ssl.views.orientation import mirror
from nnunet_ssl.views.painting import random_painting
from nnunet_ssl.views.spec import Views
from nnunet_ssl.views.value_range import value_range


@dataclass(frozen=True)
class ModelsGenesisConfig:
    """Defaults: OpenMind, whose settings are those of Models Genesis."""

    flip_probability: Probability = 0.4  # of each next of up to three flips; input and target alike
    shuffle_probability: Probability = 0.5  # share of images whose voxels are shuffled locally
    # Share of such an image that is shuffled. The recipe's 10 000 boxes of 8.5^3 voxels on average cover
    # 1 - exp(-10 000 * 8.5^3 / 160^3) = 0.78 of a patch of 160^3.
    shuffle_share: Probability = 0.78
    # Widest box in voxels, all axes or one number per axis; None: a tenth of the patch, at least 2.
    shuffle_block: Count | PerAxis | None = None
    intensity_probability: Probability = 0.9  # share of images mapped through a Bezier curve
    paint_probability: Probability = 0.9  # share of images with in- or out-painting
    inpaint_probability: Probability = 0.2  # of these; the others are out-painted
    paint_boxes: Count = 5  # boxes painted over, or windows left, at most
    paint_another: Probability = 0.95  # probability of each next box
    loss: Loss = "l2"  # over all voxels

    def __post_init__(self) -> None:
        if self.shuffle_probability * self.shuffle_share + self.intensity_probability + self.paint_probability == 0:
            raise ValueError(
                "Nothing is corrupted, so there is nothing to restore. Give one of shuffle_probability, "
                "intensity_probability and paint_probability a value above 0."
            )


class ModelsGenesisInputs(TypedDict):
    """What the task makes of a batch."""

    image: Float  # [B, C, *patch], mirrored: what is to be restored
    excluded: Bool  # [B, 1, *patch]
    corrupted: Float  # [B, C, *patch]


class ModelsGenesis(Method):
    """Restoration of corrupted images; U-Nets and Primus, 2D and 3D.

    Per image, in this order: flips (target included), local shuffling, a non-linear intensity curve, in- or
    out-painting. The whole network restores the image; every voxel that is not excluded counts.

    Differs from nnssl: (1) flips cover all spatial axes, where one of the three was the channel axis; (2) intensity
    curves and noise use each image's own range of values, where [0, 1] was assumed, so that z-scores were clamped and a
    good part of the image lost; (3) shuffled boxes are a random tiling of which a share is shuffled, in place of 10 000
    boxes over each other: the same widths, coverage and local histograms without a loop; (4) all random numbers come from
    one generator, where forked workers used to draw the same ones.
    """

    name = "models_genesis"
    trivial_answer = "the mean grey value, or the input handed back"
    Config = ModelsGenesisConfig
    Inputs = ModelsGenesisInputs
    citation = (
        "Zhou Z., Sodha V., Pang J., Gotway M. B., Liang J. (2021). Models Genesis. Medical Image Analysis 67. | "
        "Wald T. et al. (2025). An OpenMind for 3D medical vision self-supervised learning. ICCV."
    )

    @classmethod
    def views(cls, config: Any, patch_size: Sequence[int]) -> Views:
        size = tuple(int(s) for s in patch_size)
        # The recipe neither rotates nor scales; its flips are made in `prepare`.
        return Views(region_size=size, network_size=size, rotate_and_scale=0.0, mirror=False)

    def prepare(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        config, number, size = self.config, len(batch["image"]), batch["image"].shape[2:]
        flips = random_flips(number, len(size), config.flip_probability, generator)
        image, excluded = mirror(batch["image"], flips), mirror(batch["excluded"], flips)
        low, high = value_range(image, excluded)

        def chosen(probability: float) -> np.ndarray:
            """Samples [B] to which a corruption applies."""
            return rng.Host(generator).rand(number) < probability

        share = chosen(config.shuffle_probability) * config.shuffle_share
        corrupted = local_shuffle(image, self._shuffle_widths(size), share, generator)
        corrupted = bezier_intensity(corrupted, low, high, generator, config.intensity_probability)
        painted = random_painting(
            number, size, config.inpaint_probability, config.paint_boxes, config.paint_another, generator
        )
        rows = chosen(config.paint_probability).nonzero()[0].tolist()
        for row, noise in zip(rows, rng.rand(image.shape, generator, rows), strict=True):
            noise.mul_(high[row] - low[row]).add_(low[row])
            corrupted[row] = torch.where(painted[row], noise, corrupted[row])
        return {"image": image, "excluded": excluded, "corrupted": corrupted}

    def _shuffle_widths(self, size: Sequence[int]) -> tuple[int, ...]:
        """Widest box of the local shuffling per axis [voxels]."""
        block = self.config.shuffle_block
        if block is None:
            block = tuple(max(s // 10, 2) for s in size)
        widths = (block,) * len(size) if isinstance(block, int) else tuple(block)
        if len(widths) != len(size):
            raise ValueError(f"shuffle_block {widths} has {len(widths)} axes, the patch {tuple(size)} has {len(size)}.")
        return tuple(min(w, s) for w, s in zip(widths, size, strict=True))

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"counted": (~inputs["excluded"]).sum()}

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """The mean grey value, or the corrupted image handed back, whichever is better."""
        image, counted, loss = inputs["image"], ~inputs["excluded"], self.config.loss
        copied = masked_error(inputs["corrupted"], image, counted, loss)
        return torch.minimum(constant_error(image, counted, loss), copied)

    def forward(self, inputs: dict[str, Tensor]) -> MethodOutput:
        image, corrupted, excluded = inputs["image"], inputs["corrupted"], inputs["excluded"]
        prediction = self.backbone(corrupted)
        loss = masked_error(prediction, image, ~excluded, self.config.loss, inputs.get("counted"))
        with torch.no_grad():
            explained = explained_variance(prediction, image, torch.ones_like(excluded), excluded)
            left = masked_error(prediction, image, ~excluded)
            copied = masked_error(corrupted, image, ~excluded)
            # Error against that of handing back the input: 1 is perfect, 0 no better than copying, negative is worse.
            restored = (copied - left) / torch.maximum(copied, left).clamp(min=1e-12)
        preview = {"input": image, "corrupted": corrupted, "reconstruction": prediction.detach()}
        preview["excluded"] = excluded
        return MethodOutput(loss, {"explained_variance": explained, "restored": restored}, preview)
