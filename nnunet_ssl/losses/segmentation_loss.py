"""nnU-Net's segmentation loss, cross entropy and soft Dice, over the voxels that count."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SMOOTH = 1e-5  # nnU-Net's


class SegmentationLoss(NamedTuple):
    """cross_entropy: mean over the counted voxels, 0 if there are none. dice: soft coefficient, 1 is perfect."""

    cross_entropy: Tensor
    dice: Tensor


def segmentation_loss(
    logits: Tensor, labels: Tensor, counted: Tensor, number: Tensor | None = None
) -> SegmentationLoss:
    """Cross entropy and soft Dice of logits [B, K, *spatial] and labels int64 [B, 1, *spatial], in float32.

    counted: bool [B, 1, *spatial]. Dice is the mean over samples and all classes, as nnU-Net's without `batch_dice`.
    number: of voxels to divide the cross entropy by, None for those that count; see `Method.counts`.
    """
    log_probability = logits.float().log_softmax(dim=1)
    probability = log_probability.exp()
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, *(1,) * (logits.ndim - 2))
    truth = (labels == classes) & counted
    axes = tuple(range(2, logits.ndim))
    # Sums of products, not gathered values: adding those up per class would depend on the order of a GPU's threads.
    total = (counted.sum() if number is None else number).float()
    cross_entropy = -(log_probability * truth).sum() / torch.where(total > 0, total, torch.ones_like(total))
    shared, predicted, present = (probability * truth).sum(axes), (probability * counted).sum(axes), truth.sum(axes)
    dice = (2 * shared + SMOOTH) / (predicted + present + SMOOTH)
    return SegmentationLoss(cross_entropy, dice.mean())


def accuracy(logits: Tensor, labels: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """(share of counted voxels with the right class, share of the most frequent class); shapes as above."""
    number = counted.sum().clamp(min=1)
    right = (logits.argmax(dim=1, keepdim=True) == labels) & counted
    frequencies = torch.stack([((labels == k) & counted).sum() for k in range(logits.shape[1])])
    return right.sum() / number, frequencies.max() / number
