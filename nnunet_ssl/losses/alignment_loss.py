"""Features of the same place in two views shall agree."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from nnunet_ssl.losses.gather import global_mean


class Alignment(NamedTuple):
    """loss: scalar. terms: similarity of the same and of different places."""

    loss: Tensor
    terms: dict[str, Tensor]


def alignment_loss(predicted: Tensor, projected: Tensor, usable: Tensor, together: bool) -> Alignment:
    """1 - cosine between what one view predicts and what the other has at the same place, in both directions.

    predicted, projected: [2B, P, E], the first views of B images and then the second ones, P places each; the gradient
    stops at `projected`. usable: bool [B]. 0 is perfect, 1 what unrelated features get. Computed in float32.

    Chen and He, "Exploring Simple Siamese Representation Learning" (CVPR 2021), equation 2.
    """
    target = torch.cat(projected.float().detach().chunk(2)[::-1])
    similarity = cosine_similarity(predicted.float(), target, dim=-1)  # [2B, P]
    weights = torch.cat([usable, usable]).float().unsqueeze(1).expand_as(similarity)
    loss = global_mean(1 - similarity, weights, together)
    with torch.no_grad():
        # The next image of the same half; of a batch of one, the next place.
        moved = target.roll(1, dims=1) if len(target) == 2 else torch.cat([h.roll(1, 0) for h in target.chunk(2)])
        elsewhere = cosine_similarity(predicted.float(), moved, dim=-1)
        total = weights.sum().clamp(min=1)
        terms = {
            "positive_similarity": (similarity * weights).sum() / total,
            "negative_similarity": (elsewhere * weights).sum() / total,
        }
    return Alignment(loss, terms)
