"""Indicators of collapse."""

import pytest
import torch

from nnunet_ssl.methods.embeddings import effective_rank, spread


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
