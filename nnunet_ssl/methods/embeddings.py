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
