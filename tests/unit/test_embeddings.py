"""Indicators of collapse."""

import pytest
import torch

from nnunet_ssl.losses.embeddings import effective_rank, knn_agreement, spread


def test_spread_tells_even_from_collapsed():
    z = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    assert spread(z).item() == pytest.approx(1, abs=0.02)
    assert spread(7 * z).item() == pytest.approx(spread(z).item(), abs=1e-4)
    assert spread(torch.ones(10, 64) + 1e-4 * z[:10]) < 0.01


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_effective_rank_counts_directions(rank):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, rank, generator=generator)).Q
    z = torch.randn(2000, rank, generator=generator) @ basis.T
    assert effective_rank(z).item() == pytest.approx(rank, rel=0.05)


def test_effective_rank_against_eigenvalues():
    z = torch.randn(30, 12, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 13)
    unit = z / z.norm(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(torch.cov(unit.T))
    assert effective_rank(z).item() == pytest.approx((values.sum() ** 2 / values.square().sum()).item(), rel=1e-3)


def test_embeddings_that_are_not_usable_do_not_count():
    z = torch.randn(30, 12, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 13)
    usable = torch.rand(30, generator=torch.Generator().manual_seed(2)) < 0.6
    z[~usable] = 100.0
    for indicator in (spread, effective_rank):
        assert indicator(z, usable).item() == pytest.approx(indicator(z[usable]).item(), rel=1e-4)
        assert indicator(z, torch.zeros(30, dtype=torch.bool)) == 0


def test_collapsed_embeddings_have_rank_zero():
    assert effective_rank(torch.ones(8, 16)) == 0


def slow_agreement(first, second, usable):
    """Neighbours as sets."""
    rows = [i for i in range(len(first)) if usable[i]]
    k, shared = max((len(first) - 1) // 4, 1), []
    for i in rows:
        near = []
        for view in (first, second):
            others = [j for j in rows if j != i]
            cosine = {j: torch.cosine_similarity(view[i], view[j], dim=0).item() for j in others}
            near.append(set(sorted(others, key=cosine.get, reverse=True)[:k]))
        shared.append(len(near[0] & near[1]) / k)
    chance = k / (len(first) - 1)
    return (sum(shared) / len(shared) - chance) / (1 - chance)


def test_agreement_of_neighbours_against_sets():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(40, 12, generator=generator)
    second = first + torch.randn(40, 12, generator=generator)
    usable = torch.rand(40, generator=generator) < 0.8
    found = knn_agreement(first, second, usable).item()
    assert found == pytest.approx(slow_agreement(first, second, usable), abs=1e-5)
    assert 0.1 < found < 0.9
    assert knn_agreement(first, 3 * first) == 1
    assert (
        abs(knn_agreement(torch.randn(400, 12, generator=generator), torch.randn(400, 12, generator=generator))) < 0.05
    )
    assert knn_agreement(first[:2], second[:2]) == 0
    assert knn_agreement(first, second, torch.zeros(40, dtype=torch.bool)) == 0
