"""What a student is asked for by a teacher that is not trained: soft assignments to prototypes.

DINO (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, https://arxiv.org/abs/2104.14294),
iBOT (Zhou et al., "Image BERT Pre-Training with Online Tokenizer", ICLR 2022, https://arxiv.org/abs/2111.07832) and DINOv2
(Oquab et al., 2023, https://arxiv.org/abs/2304.07193). Everything is computed in float32.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from nnunet_ssl.losses.gather import global_sum

ROUNDS = 3  # of Sinkhorn-Knopp, as in SwAV and DINOv2


def centred_assignment(scores: Tensor, centre: Tensor, temperature: Tensor | float) -> Tensor:
    """Softmax of the teacher's scores [N, K] minus their running mean [K], sharpened by a low temperature.

    Sharpening alone would end with one prototype for everything, centring alone with all of them equally (DINO, section 5.3).
    """
    return ((scores.float() - centre) / temperature).softmax(dim=-1)


def sinkhorn_assignment(scores: Tensor, weight: Tensor, temperature: Tensor | float, together: bool) -> Tensor:
    """Assignment of the whole batch that gives every prototype the same share: three rounds of Sinkhorn-Knopp.

    scores: cosines [N, K]. weight: [N], 0 for rows that do not count. together: whether the batch is that of all processes.
    Every row sums up to 1. Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (NeurIPS
    2020), section 3.1 and its appendix A.
    """
    # A common factor cancels: with this one nothing is larger than 1.
    table = ((scores.float() - 1) / temperature).exp() * weight.unsqueeze(1)
    for _ in range(ROUNDS):
        table = table / global_sum(table.sum(dim=0), together).clamp(min=1e-30)  # columns: as much for every prototype
        table = table / table.sum(dim=1, keepdim=True).clamp(min=1e-30)  # rows: as much from every token
    return table


def distillation(assignment: Tensor, scores: Tensor, temperature: float, weight: Tensor, number: Tensor) -> Tensor:
    """Cross entropy between the teacher's assignments [N, K] and the student's scores [N, K].

    weight: [N]. number: of rows to divide by, see `Method.counts`; 0 (with a gradient of zero) where there are none.
    """
    rows = -(assignment * log_softmax(scores.float() / temperature, dim=-1)).sum(dim=-1)
    return (rows * weight).sum() / torch.where(number > 0, number, torch.ones_like(number))


@torch.no_grad()
def assignment_health(assignment: Tensor, scores: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """How sharp and how diverse a teacher's assignments [N, K] are, and how often the student has the same favourite.

    entropy: of single assignments, as share of log K; 1 is no opinion. diversity: of their mean; near 0 everything is assigned to
    one prototype, and any student that says so has a low loss. agreement: of the favourites, a share. scores: the student's.
    """
    largest, number = log(assignment.shape[1]), weight.sum().clamp(min=1)
    mean = (assignment * weight.unsqueeze(1)).sum(dim=0) / number
    same = assignment.argmax(dim=1) == scores.argmax(dim=1)
    return {
        "entropy": (torch.special.entr(assignment).sum(dim=1) * weight).sum() / number / largest,
        "diversity": torch.special.entr(mean).sum() / largest,
        "agreement": (same * weight).sum() / number,
    }
