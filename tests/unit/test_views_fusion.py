"""Levels of fusion: boxes painted over each other one by one, and images mixed voxel by voxel."""

from itertools import product

import pytest
import torch

from nnunet_ssl.views.fusion import fuse, paint_boxes, random_boxes, random_levels

SIZES = [(9, 7, 5), (16, 24, 8), (12, 10), (20, 1, 11)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paint_voxel_by_voxel(starts, widths, values, size) -> torch.Tensor:
    """Every box over the ones before, voxel by voxel."""
    painted = torch.zeros(len(starts), 1, *size, dtype=torch.int64)
    for sample, own in enumerate(values):
        for number, value in enumerate(own):
            box = zip(starts[sample, number].tolist(), widths[sample, number].tolist(), strict=True)
            for voxel in product(*(range(start, start + width) for start, width in box)):
                painted[(sample, 0, *voxel)] = value
    return painted


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number", [1, 24, 60])
def test_boxes_lie_over_those_before(size, number):
    # A few narrow boxes per image leave voxels free and early boxes visible.
    starts, widths = random_boxes((3, number), size, 1, 0.4, generator(number))
    values = [list(range(1, 1 + n)) for n in (number, number // 2, 0)]
    found = paint_boxes(starts, widths, values, size, torch.device("cpu"))
    assert found.dtype == torch.int64
    assert torch.equal(found, paint_voxel_by_voxel(starts, widths, values, size))


def test_levels_are_their_boxes_in_the_drawn_colours():
    """The numbers are drawn in this order: boxes, how many of them, colours, of which the first is for no box."""
    size, common = (16, 12, 8), generator(4)
    found = random_levels(3, size, 5, (2, 6), 2, 0.6, generator(4))
    starts, widths = random_boxes((3, 6), size, 2, 0.6, common)
    number = torch.randint(2, 7, (3, 1), generator=common)[:, 0].tolist()
    colours = torch.randint(0, 5, (3, 7), generator=common).tolist()
    values = [own[1 : 1 + n] for own, n in zip(colours, number, strict=True)]
    assert torch.equal(found, paint_voxel_by_voxel(starts, widths, values, size))


@pytest.mark.parametrize(
    ("length", "edges"), [(160, (8, 100)), (64, (8, 40)), (40, (5, 25)), (16, (2, 10)), (8, (1, 5)), (1, (1, 1))]
)
def test_edges_of_boxes(length, edges):
    starts, widths = (x[..., 1] for x in random_boxes((50, 200), (24, length), 8, 0.625, generator()))
    assert (widths.min().item(), widths.max().item()) == edges
    expected = sum(edges) / 2
    assert widths.mean() == pytest.approx(expected, rel=0.03)
    assert starts.min() == 0
    assert (starts + widths).max() == length
    # Uniform over the places where the box fits.
    room = length - widths
    assert starts.sum() / max(room.sum(), 1) == pytest.approx(0.5 if length > 1 else 0, abs=0.02)


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
