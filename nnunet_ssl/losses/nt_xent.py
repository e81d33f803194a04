"""The contrastive loss of SimCLR over the batch of all processes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from nnunet_ssl.losses.gather import gather, global_mean, rank


class Contrast(NamedTuple):
    """loss: scalar. terms: similarity of positives and negatives, and how often the positive is the most similar."""

    loss: Tensor
    terms: dict[str, Tensor]


def equal_embeddings(images: Tensor, usable: Tensor, temperature: float) -> Tensor:
    """NT-Xent of embeddings that are all the same, which is guessing: about the logarithm of the number of candidates.

    images, usable: one per pair, as in `nt_xent`.
    """
    same = torch.ones(len(images), 1, device=usable.device)
    return nt_xent(same, same, images, usable, temperature, together=False).loss


def nt_xent(
    first: Tensor, second: Tensor, images: Tensor, usable: Tensor, temperature: float, together: bool
) -> Contrast:
    """Normalised temperature-scaled cross entropy of pairs of embeddings [N, E].

    Each of the 2N embeddings has to pick its partner among the embeddings of all other images, of all processes when
    `together`. images: int [N], which image a pair comes from; pairs of one image are never each other's negatives,
    because their crops may show the same. usable: bool [N]; other pairs neither ask nor answer. An embedding without
    any negative contributes 0. Computed in float32.

    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (ICML 2020), equation 1.
    """
    number = len(first)
    with torch.autocast(first.device.type, enabled=False):
        own = normalize(torch.cat([first, second]).float(), dim=1)
        everyone = gather(own, together)
        similarity = own @ everyone.T
    own_image = torch.cat([images, images]) + rank(together) * number
    own_usable = torch.cat([usable, usable])
    row = torch.arange(2 * number, device=own.device)
    partner = (row + number) % (2 * number) + rank(together) * 2 * number
    negative = (own_image.unsqueeze(1) != gather(own_image, together)) & gather(own_usable, together)
    competing = negative.scatter(1, partner.unsqueeze(1), True)  # set by index, True would be copied to the GPU
    logits = (similarity / temperature).masked_fill(~competing, float("-inf"))
    loss = global_mean(cross_entropy(logits, partner, reduction="none"), own_usable, together)
    with torch.no_grad():
        compared = (negative & own_usable.unsqueeze(1)).float()
        asked = own_usable.float()
        terms = {
            "positive_similarity": (similarity[row, partner] * asked).sum() / asked.sum().clamp(min=1),
            "negative_similarity": (similarity * compared).sum() / compared.sum().clamp(min=1),
            "accuracy": ((logits.argmax(dim=1) == partner) * asked).sum() / asked.sum().clamp(min=1),
        }
    return Contrast(loss, terms)
