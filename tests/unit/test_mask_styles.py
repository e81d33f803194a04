"""Mask styles, ratios drawn per batch and aligned blocks, against loop-written twins."""

import itertools

import pytest
import torch

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.methods.mae import MAEConfig
from nnunet_ssl.settings.blocks import read_config
from nnunet_ssl.views.masks import (
    aligned_block,
    draw_ratio,
    hidden_count,
    random_block_mask,
    random_blocks,
    random_hidden,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("grid", [(4, 6, 4), (5, 7, 3), (1, 5, 4), (6, 3)])
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.75, 0.9])
def test_grid_repeats_one_small_pattern(grid, ratio):
    masks = torch.from_numpy(random_blocks(3, grid, ratio, seeded(1), "grid"))
    assert masks.shape == (3, *grid)
    cells = [min(2, n) for n in grid]
    pattern = {}
    for sample in range(3):
        for place in itertools.product(*(range(n) for n in grid)):
            key = tuple(p % c for p, c in zip(place, cells, strict=True))
            assert pattern.setdefault(key, bool(masks[(sample, *place)])) == bool(masks[(sample, *place)])
    number = len(pattern)
    assert sum(pattern.values()) == min(max(round(ratio * number), 1), number - 1)


@pytest.mark.parametrize("grid", [(4, 6, 5), (1, 8, 3), (7, 4)])
def test_slices_are_whole_slabs_across_one_axis(grid):
    axes = set()
    for seed in range(12):
        masks = torch.from_numpy(random_blocks(3, grid, 0.6, seeded(seed), "slices"))
        fitting = []
        for axis, length in enumerate(grid):
            slabs = masks.movedim(axis + 1, 1).flatten(2)
            whole = all(len(set(slabs[b, i].tolist())) == 1 for b in range(3) for i in range(length))
            counts = {int(slabs[b, :, 0].sum()) for b in range(3)}
            if whole and length > 1 and counts == {hidden_count(length, 0.6)}:
                fitting.append(axis)
        assert fitting
        axes.update(fitting)
    assert axes == {a for a, n in enumerate(grid) if n > 1}


def test_blocks_are_the_flat_masks():
    assert (random_blocks(2, (3, 4), 0.5, seeded(4)).reshape(2, 12) == random_hidden(2, 12, 0.5, seeded(4))).all()


@pytest.mark.parametrize("style", ["blocks", "grid", "slices"])
def test_every_sample_hides_the_same_number_and_a_seed_says_it_all(style):
    first, again, other = (random_block_mask(4, (24, 16, 40), 8, 0.6, seeded(s), style) for s in (5, 5, 9))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (4, 1, 24, 16, 40)
    assert len(set(first.flatten(1).sum(dim=1).tolist())) == 1


@pytest.mark.parametrize("style", ["blocks", "grid", "slices"])
def test_a_single_block_is_refused_in_every_style(style):
    with pytest.raises(ValueError, match="single block"):
        random_blocks(1, (1, 1, 1), 0.5, seeded(), style)


def test_ratio_drawn_per_batch():
    assert draw_ratio(0.75, seeded()) == 0.75
    drawn = torch.tensor([draw_ratio((0.6, 0.9), seeded(s)) for s in range(400)])
    assert drawn.min() >= 0.6
    assert drawn.max() <= 0.9
    assert drawn.mean().item() == pytest.approx(0.75, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.3 / 12**0.5, abs=0.01)


@pytest.mark.parametrize("ratio", [0, 1.0, (0.5, 1.2), (0.9, 0.6), (0.1, 0.2, 0.3), (), "much"])
def test_impossible_ratios(ratio):
    with pytest.raises(SettingsError, match="mask_ratio"):
        read_config(MAEConfig, {"mask_ratio": ratio}, "here")


@pytest.mark.parametrize("block", [0, (8, 0, 8), 2.5, True, (), (8, 8)])
def test_impossible_blocks(block):
    with pytest.raises(
        SettingsError, match="mask_block must be a whole number >= 1, or one per axis, 3 of them, found"
    ):
        read_config(MAEConfig, {"mask_block": block}, "here")


def test_aligned_block():
    assert aligned_block(None, (8, 32, 32), "x") == (8, 32, 32)
    assert aligned_block(32, (8, 32, 32), "x") == (32, 32, 32)
    with pytest.raises(ValueError, match=r"multiple of the stride, \(8, 16\) voxels.*\[16, 32\]"):
        aligned_block((12, 20), (8, 16), "the stride")
    with pytest.raises(ValueError, match="2 axes, the network has 3"):
        aligned_block((8, 8), (8, 8, 8), "x")
