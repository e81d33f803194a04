"""Loss and indicator of the tasks that paint missing voxels."""

from __future__ import annotations

from torch import Tensor


def masked_mse(prediction: Tensor, target: Tensor, hidden: Tensor, excluded: Tensor) -> Tensor:
    """Mean squared error over hidden voxels that are not excluded.

    prediction, target [B, C, *spatial]; hidden, excluded bool [B, 1, *spatial]. Zero (with a gradient of zero) when no
    voxel counts. Computed in float32 whatever the inputs' precision.
    """
    weight = (hidden & ~excluded).to(prediction.device).float()
    error = (prediction.float() - target.float()).square() * weight
    return error.sum() / (weight.sum() * prediction.shape[1]).clamp(min=1)


def explained_variance(prediction: Tensor, target: Tensor, hidden: Tensor, excluded: Tensor) -> Tensor:
    """Share of the hidden voxels' variance that the prediction explains: 1 is perfect, 0 is as good as their mean.

    Shapes as in `masked_mse`; the mean is taken over all counted voxels of the batch.
    """
    counts = (hidden & ~excluded).float()
    number = (counts.sum() * target.shape[1]).clamp(min=1)
    mean = (target.float() * counts).sum() / number
    variance = ((target.float() - mean).square() * counts).sum() / number
    return 1 - masked_mse(prediction, target, hidden, excluded) / variance.clamp(min=1e-8)
