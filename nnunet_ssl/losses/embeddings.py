"""Is a representation alive? Indicators of collapse for embeddings [N, E].

usable, bool [N], leaves embeddings out, e.g. those of crops that lie mostly outside of the image; None: none.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def _centred(embeddings: Tensor, usable: Tensor | None) -> tuple[Tensor, Tensor]:
    """L2-normalised embeddings minus their mean, 0 where not usable, and the number of usable ones."""
    unit = normalize(embeddings.float(), dim=-1)
    weight = torch.ones_like(unit[:, :1]) if usable is None else usable.float().unsqueeze(1)
    number = weight.sum().clamp(min=1)
    return (unit - (unit * weight).sum(dim=0) / number) * weight, number


@torch.no_grad()
def spread(embeddings: Tensor, usable: Tensor | None = None) -> Tensor:
    """Standard deviation per dimension of the L2-normalised embeddings, times sqrt(E): 1 is spread evenly, 0 collapsed.

    Chen and He, "Exploring Simple Siamese Representation Learning" (CVPR 2021), section 4.1.
    """
    centred, number = _centred(embeddings, usable)
    return (centred.square().sum(dim=0) / number).sqrt().mean() * embeddings.shape[-1] ** 0.5


@torch.no_grad()
def effective_rank(embeddings: Tensor, usable: Tensor | None = None) -> Tensor:
    """Number of directions that the L2-normalised embeddings use: (sum of eigenvalues)^2 / sum of their squares.

    The eigenvalues are those of the covariance; the ratio (participation ratio) needs no decomposition. Between 1 and
    min(N - 1, E); 0 when all embeddings are equal.
    """
    centred, number = _centred(embeddings, usable)
    with torch.autocast(centred.device.type, enabled=False):
        gram = centred @ centred.T
    trace = gram.diagonal().sum()
    collapsed = trace < 1e-8 * number
    return torch.where(collapsed, torch.zeros_like(trace), trace.square() / gram.square().sum().clamp(min=1e-20))


def health(embeddings: Tensor, usable: Tensor | None = None) -> dict[str, Tensor]:
    """Both indicators, named for the log."""
    return {"spread": spread(embeddings, usable), "effective_rank": effective_rank(embeddings, usable)}


@torch.no_grad()
def knn_agreement(first: Tensor, second: Tensor, usable: Tensor | None = None) -> Tensor:
    """How far two views of the same N images [N, E] agree on which images are alike: 1 always, 0 as often as by chance.

    The share of an image's k most similar other images (cosine, k a quarter of them) that both views name, of which chance
    would give k of N - 1. Collapsed embeddings, whose neighbours are rounding, agree by chance alone. 0 below three images.
    """
    number = len(first)
    if number < 3:
        return first.new_zeros((), dtype=torch.float32)
    k = max((number - 1) // 4, 1)
    with torch.autocast(first.device.type, enabled=False):
        near = [_neighbours(normalize(view.float(), dim=-1), usable, k) for view in (first, second)]
    shared = (near[0] & near[1]).float().sum(dim=1) / k
    weight = torch.ones_like(shared) if usable is None else usable.float()
    agreement, chance = (shared * weight).sum() / weight.sum().clamp(min=1), k / (number - 1)
    return (agreement - chance) / (1 - chance) * (weight.sum() > 0)


def _neighbours(unit: Tensor, usable: Tensor | None, k: int) -> Tensor:
    """Bool [N, N]: whether the column is among the k most similar to the row, which never names itself."""
    similarity = (unit @ unit.T).fill_diagonal_(-2)
    if usable is not None:
        similarity = similarity.masked_fill(~usable, -2)
    return torch.zeros_like(similarity, dtype=torch.bool).scatter(1, similarity.topk(k, dim=1).indices, True)
