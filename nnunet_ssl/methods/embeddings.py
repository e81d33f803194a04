"""Is a representation alive? Indicators of collapse for embeddings [N, E]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


@torch.no_grad()
def spread(embeddings: Tensor) -> Tensor:
    """Standard deviation per dimension of the L2-normalised embeddings, times sqrt(E): 1 is spread evenly, 0 collapsed.

    Chen and He, "Exploring Simple Siamese Representation Learning" (CVPR 2021), section 4.1.
    """
    unit = normalize(embeddings.float(), dim=-1)
    return unit.std(dim=0, correction=0).mean() * embeddings.shape[-1] ** 0.5


@torch.no_grad()
def effective_rank(embeddings: Tensor) -> Tensor:
    """Number of directions that the L2-normalised embeddings use: (sum of eigenvalues)^2 / sum of their squares.

    The eigenvalues are those of the covariance; the ratio (participation ratio) needs no decomposition. Between 1 and
    min(N - 1, E); 0 when all embeddings are equal.
    """
    unit = normalize(embeddings.float(), dim=-1)
    with torch.autocast(unit.device.type, enabled=False):
        centred = unit - unit.mean(dim=0)
        gram = centred @ centred.T
    trace = gram.diagonal().sum()
    collapsed = trace < 1e-8 * len(unit)
    return torch.where(collapsed, torch.zeros_like(trace), trace.square() / gram.square().sum().clamp(min=1e-20))


def health(embeddings: Tensor) -> dict[str, Tensor]:
    """Both indicators, named for the log."""
    return {"spread": spread(embeddings), "effective_rank": effective_rank(embeddings)}
