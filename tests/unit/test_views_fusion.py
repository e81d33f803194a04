"""Levels of fusion: boxes painted over each other one by one, and images mixed voxel by voxel."""

from itertools import product

import pytest
import torch

from nnunet_ssl.views.fusion import fuse, last_box, random_boxes, random_levels

SIZES = [(9, 7, 5), (16, 24, 8), (12, 10), (20, 1, 11)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paint_one_by_one(starts, widths, active, size) -> torch.Tensor:
    """Every box over the ones before, voxel by voxel."""
    painted = torch.zeros(len(starts), *size, dtype=torch.int32)
    for sample, number in product(range(len(starts)), range(starts.shape[1])):
        if active[sample, number]:
            box = zip(starts[sample, number].tolist(), widths[sample, number].tolist(), strict=True)
            for voxel in product(*(range(start, start + width) for start, width in box)):
                painted[(sample, *voxel)] = number + 1
    return painted


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number", [1, 24, 25, 60])
def test_last_box_is_what_painting_one_by_one_leaves(size, number):
    # A few narrow boxes per image leave voxels free and early boxes visible; 25 and 60 take more than one integer.
    starts, widths = random_boxes((3, number), size, 1, 0.4, generator(number))
    active = torch.rand(3, number, generator=generator(1)) < 0.5
    found = last_box(starts, widths, active, size)
    assert found.dtype == torch.int32
    assert torch.equal(found, paint_one_by_one(starts, widths, active, size))


def test_every_box_can_be_on_top():
    starts = torch.arange(100).view(1, 100, 1)
    found = last_box(starts, torch.ones_like(starts), torch.ones(1, 100, dtype=torch.bool), (100,))
    assert found[0].tolist() == list(range(1, 101))
    assert not last_box(starts, torch.ones_like(starts), torch.zeros(1, 100, dtype=torch.bool), (100,)).any()


@pytest.mark.parametrize(
    ("length", "edges"), [(160, (8, 100)), (64, (8, 40)), (40, (5, 25)), (16, (2, 10)), (8, (1, 5)), (1, (1, 1))]
)
def test_edges_of_boxes(length, edges):
    starts, widths = (x[..., 1] for x in random_boxes((50, 200), (24, length), 8, 0.625, generator()))
    assert (widths.min().item(), widths.max().item()) == edges
    expected = sum(edges) / 2
    assert widths.float().mean().item() == pytest.approx(expected, rel=0.03)
    assert starts.min() == 0
    assert (starts + widths).max() == length
    # Uniform over the places where the box fits.
    room = (length - widths).float()
    assert (starts.float().sum() / room.sum().clamp(min=1)).item() == pytest.approx(0.5 if length > 1 else 0, abs=0.02)


@pytest.mark.parametrize("boxes", [(1, 1), (2, 5)])
def test_number_of_boxes(boxes):
    # Boxes of one voxel, each of another level: with so many levels and voxels nearly every box can be counted.
    levels = random_levels(300, (64, 64), 10**6, boxes, 1, 0.02, generator())
    counts = (levels != 0).flatten(1).sum(dim=1)
    assert counts.max() == boxes[1]
    assert counts.min() >= boxes[0] - 1
    assert counts.float().mean().item() == pytest.approx(sum(boxes) / 2, rel=0.1)


def test_levels_are_drawn_evenly_and_nothing_is_level_zero():
    levels = random_levels(200, (16, 16, 16), 4, (10, 39), 8, 0.625, generator())
    assert levels.dtype == torch.int64
    assert levels.shape == (200, 1, 16, 16, 16)
    shares = [(levels == k).float().mean().item() for k in range(4)]
    assert sum(shares) == pytest.approx(1)
    for share in shares[1:]:
        assert share == pytest.approx(sum(shares[1:]) / 3, rel=0.15)
    assert shares[0] > 2 * max(shares[1:])


def test_samples_differ_and_seeds_decide():
    first, again, other = (random_levels(2, (16, 12, 8), 5, (3, 6), 8, 0.6, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [2, 3, 5])
def test_fusion_voxel_by_voxel(size, levels):
    foreground, background = torch.randn(2, 2, 3, *size, generator=generator())
    level = torch.randint(0, levels, (2, 1, *size), generator=generator())
    fused = fuse(foreground, background, level, levels)
    alphas = torch.linspace(0, 1, levels).tolist()
    for sample, channel, *voxel in product(range(2), range(3), *map(range, size)):
        place, alpha = (sample, channel, *voxel), alphas[level[(sample, 0, *voxel)]]
        expected = alpha * foreground[place].item() + (1 - alpha) * background[place].item()
        assert fused[place].item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(fused[(level == 0).expand_as(fused)], background[(level == 0).expand_as(fused)])
    assert torch.equal(
        fused[(level == levels - 1).expand_as(fused)], foreground[(level == levels - 1).expand_as(fused)]
    )
