"""The loss of VoCo: similarity of crops shall be their overlap."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, relu

from nnunet_ssl.losses.gather import global_mean


class VoCoLoss(NamedTuple):
    """overlapping, apart, regularisation: scalars to be added up; similarity [B, T, K], without gradient."""

    overlapping: Tensor
    apart: Tensor
    regularisation: Tensor
    similarity: Tensor


def voco_loss(
    bases: Tensor,
    targets: Tensor,
    overlap: Tensor,
    base_usable: Tensor,
    target_usable: Tensor,
    together: bool,
    squared: bool = False,
) -> VoCoLoss:
    """Loss of base embeddings [B, K, E] and target embeddings [B, T, E] whose crops share `overlap` [B, T, K] in [0, 1].

    similarity = relu(cosine(target, base)), without gradient into the base.
    overlapping: mean of -log(1 - |overlap - similarity|), weighted with the overlap; apart: mean squared similarity
    where there is no overlap; regularisation: mean relu(cosine), or its square where `squared`, of pairs of bases, which
    shall point into different directions. Crops that are not usable (bool [B, K], [B, T]) do not count. Computed in float32.

    Wu et al., "VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image Analysis"
    (CVPR 2024).
    """
    with torch.autocast(bases.device.type, enabled=False):
        bases, targets = normalize(bases.float(), dim=-1), normalize(targets.float(), dim=-1)
        similarity = relu(targets @ bases.detach().transpose(1, 2))
        between = relu(bases @ bases.transpose(1, 2))
        between = between.square() if squared else between
    counted = target_usable.unsqueeze(2) & base_usable.unsqueeze(1)
    distance = (overlap - similarity).abs()
    overlapping = global_mean(-torch.log(1 - distance.clamp(max=1) + 1e-6), overlap * counted, together)
    apart = global_mean(similarity.square(), (counted & (overlap == 0)).float(), together)
    number = bases.shape[1]
    i, j = torch.triu_indices(number, number, offset=1, device=bases.device)
    pairs = (base_usable[:, i] & base_usable[:, j]).float()
    return VoCoLoss(overlapping, apart, global_mean(between[:, i, j], pairs, together), similarity.detach())


def explained(overlap: Tensor, similarity: Tensor, counted: Tensor) -> Tensor:
    """Share of the variance of the overlaps [B, T, K] that the similarities explain, over what is counted (float, alike).

    1 is perfect, 0 is as good as their mean, less is worse.
    """
    number = counted.sum().clamp(min=1)
    mean = (overlap * counted).sum() / number
    variance = ((overlap - mean).square() * counted).sum() / number
    return 1 - ((overlap - similarity).square() * counted).sum() / number / variance.clamp(min=1e-8)
