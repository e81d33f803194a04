"""Losses and indicators of the tasks that reconstruct what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_ssl.methods.base import MethodOutput
from nnunet_ssl.views.masks import block_grid, upsample_mask

# What a method's settings may say of its loss.
Loss = Literal["l2", "l1"]
LossOn = Literal["hidden", "everywhere"]


def masked_error(
    prediction: Tensor, target: Tensor, counted: Tensor, loss: str = "l2", number: Tensor | None = None
) -> Tensor:
    """Mean squared ("l2") or absolute ("l1") error over the voxels that count.

    prediction, target [B, C, *spatial]; counted bool [B, 1, *spatial]. number: of voxels to divide by, None for those
    that count; see `Method.counts`. Zero (with a gradient of zero) when no voxel counts. Computed in float32 whatever
    the inputs' precision.
    """
    weight = counted.to(prediction.device).float()
    difference = prediction.float() - target.float()
    error = (difference.square() if loss == "l2" else difference.abs()) * weight
    total = (weight.sum() if number is None else number) * prediction.shape[1]
    return error.sum() / torch.where(total > 0, total, torch.ones_like(total))


def constant_error(target: Tensor, counted: Tensor, loss: str = "l2") -> Tensor:
    """`masked_error` of the one value that fits the voxels that count best: their mean, or for "l1" their median."""
    values = target[counted.expand_as(target)]
    if values.numel() == 0:
        return target.new_zeros(())
    best = values.median() if loss == "l1" else values.mean()
    return masked_error(best.expand_as(target), target, counted, loss)


def masked_mse(prediction: Tensor, target: Tensor, hidden: Tensor, excluded: Tensor) -> Tensor:
    """Mean squared error over hidden voxels that are not excluded; shapes as in `masked_error`."""
    return masked_error(prediction, target, hidden & ~excluded)


def explained_variance(prediction: Tensor, target: Tensor, hidden: Tensor, excluded: Tensor) -> Tensor:
    """Share of the hidden voxels' variance that the prediction explains: 1 is perfect, 0 is as good as their mean.

    Shapes as in `masked_mse`; the mean is taken over all counted voxels of the batch.
    """
    counts = (hidden & ~excluded).float()
    number = (counts.sum() * target.shape[1]).clamp(min=1)
    mean = (target.float() * counts).sum() / number
    variance = ((target.float() - mean).square() * counts).sum() / number
    return 1 - masked_mse(prediction, target, hidden, excluded) / variance.clamp(min=1e-8)


def patch_statistics(image: Tensor, excluded: Tensor, block: int | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [B, C, *spatial] of the block around each voxel, excluded voxels left out.

    This is the MAE paper's normalised pixel target: the unbiased variance, to which 1e-6 is added.
    """
    width, _ = block_grid(image.shape[2:], block)
    pool = partial(F.avg_pool2d if image.ndim == 4 else F.avg_pool3d, kernel_size=width, ceil_mode=True)
    weight = (~excluded).float()
    number = pool(weight, divisor_override=1)  # voxels; a last, smaller block counts its own only

    def everywhere(blocks: Tensor) -> Tensor:
        batch, channels = blocks.shape[:2]
        return upsample_mask(blocks.flatten(0, 1), width, image.shape[2:]).view(batch, channels, *image.shape[2:])

    mean = everywhere(pool(image.float() * weight, divisor_override=1) / number.clamp(min=1))
    squares = pool((image.float() - mean).square() * weight, divisor_override=1)
    return mean, everywhere((squares / (number - 1).clamp(min=1) + 1e-6).sqrt())


@dataclass(frozen=True)
class MaskedReconstruction:
    """How an image is scored that was reconstructed from what was not hidden.

    loss, loss_on: which error, of which voxels. standardise_in: voxels of the blocks within each of which the target is
    standardised (the MAE paper's normalised pixels); None for the image as it is.
    """

    loss: Loss = "l2"
    loss_on: LossOn = "hidden"
    standardise_in: int | Sequence[int] | None = None

    def counted(self, hidden: Tensor, excluded: Tensor) -> Tensor:
        """Voxels that are scored, bool [B, 1, *spatial]: hidden ones or all, but no excluded ones."""
        return ~excluded if self.loss_on == "everywhere" else hidden & ~excluded

    def number(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How many voxels are scored, as a task's `counts`; inputs: "hidden" and "excluded" [B, 1, *spatial]."""
        return {"counted": self.counted(inputs["hidden"], inputs["excluded"]).sum()}

    def score(self, prediction: Tensor, masked: Tensor, inputs: Mapping[str, Tensor]) -> MethodOutput:
        """Loss, terms and preview of a reconstruction.

        prediction, masked (what was seen) [B, C, *spatial]; inputs: "image" [B, C, *spatial], "hidden" and "excluded" bool
        [B, 1, *spatial] and, where the batch is shared, "counted", as `number` gives it. In the preview "reconstruction" is
        all the network reconstructs, in the image's own units, "completed" what was hidden, pasted into what was not.
        """
        image, hidden, excluded = inputs["image"], inputs["hidden"], inputs["excluded"]
        target, reconstructed = image, prediction.detach()
        if self.standardise_in is not None:
            mean, deviation = patch_statistics(image, excluded, self.standardise_in)
            target, reconstructed = (image - mean) / deviation, reconstructed * deviation + mean
        loss = masked_error(prediction, target, self.counted(hidden, excluded), self.loss, inputs.get("counted"))
        with torch.no_grad():
            explained = explained_variance(prediction, target, hidden, excluded)
        completed = torch.where(hidden, reconstructed.to(image.dtype), image)
        preview = {"input": image, "masked": masked, "reconstruction": reconstructed, "completed": completed}
        preview |= {"hidden": hidden, "excluded": excluded}
        return MethodOutput(loss, {"explained_variance": explained}, preview)

    def yardstick(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What `score` charges for one grey value everywhere; inputs as there."""
        image, hidden, excluded = inputs["image"], inputs["hidden"], inputs["excluded"]
        if self.standardise_in is not None:
            mean, deviation = patch_statistics(image, excluded, self.standardise_in)
            image = (image - mean) / deviation
        return constant_error(image, self.counted(hidden, excluded), self.loss)
