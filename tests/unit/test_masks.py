"""Block masks against loop-written twins."""

import itertools

import pytest
import torch

from nnunet_ssl.views.masks import block_grid, hidden_count, random_block_mask, random_hidden, upsample_mask


def slow_upsample(mask: torch.Tensor, block: tuple[int, ...], size: tuple[int, ...]) -> torch.Tensor:
    """Look every voxel up in the block it lies in."""
    out = torch.zeros(len(mask), 1, *size, dtype=torch.bool)
    for sample in range(len(mask)):
        for voxel in itertools.product(*(range(s) for s in size)):
            out[(sample, 0, *voxel)] = mask[(sample, *(v // b for v, b in zip(voxel, block, strict=True)))]
    return out


@pytest.mark.parametrize(
    ("size", "block", "expected"),
    [
        ((160, 160, 160), 16, ((16, 16, 16), (10, 10, 10))),
        ((40, 56, 40), 16, ((16, 16, 16), (3, 4, 3))),
        ((8, 32), 16, ((8, 16), (1, 2))),
        ((20, 30, 7), (4, 8, 16), ((4, 8, 7), (5, 4, 1))),
    ],
)
def test_block_grid(size, block, expected):
    assert block_grid(size, block) == expected


def test_block_of_other_dimension_is_refused():
    with pytest.raises(ValueError, match="2 axes, the patch"):
        block_grid((8, 8, 8), (4, 4))


@pytest.mark.parametrize(("blocks", "ratio", "count"), [(1000, 0.75, 750), (125, 0.75, 93), (2, 0.1, 1), (4, 0.99, 3)])
def test_hidden_count(blocks, ratio, count):
    assert hidden_count(blocks, ratio) == count


def test_a_single_block_cannot_be_masked():
    with pytest.raises(ValueError, match="single block"):
        hidden_count(1, 0.75)


@pytest.mark.parametrize("ratio", [0.3, 0.75, 0.9])
def test_random_hidden_is_exact_per_sample_and_differs_between_samples(ratio):
    hidden = random_hidden(6, 60, ratio, torch.Generator().manual_seed(1))
    assert hidden.sum(axis=1).tolist() == [hidden_count(60, ratio)] * 6
    assert len({tuple(row.tolist()) for row in hidden}) == 6


def test_every_block_is_hidden_equally_often():
    hidden = random_hidden(4000, 8, 0.75, torch.Generator().manual_seed(0)).mean(axis=0)
    assert abs(hidden - 0.75).max() < 0.04  # more than five standard deviations


@pytest.mark.parametrize("size", [(8, 12, 8), (7, 9, 5), (10, 6)])
def test_upsample_against_loops(size):
    block, grid = block_grid(size, 4)
    mask = torch.rand(2, *grid, generator=torch.Generator().manual_seed(3)) < 0.5
    assert torch.equal(upsample_mask(mask, block, size), slow_upsample(mask, block, size))


def test_same_generator_state_same_mask():
    first, again, other = (
        random_block_mask(2, (24, 16, 40), 8, 0.6, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
