"""Crops and their overlaps against loop-written twins."""

import itertools

import numpy as np
import pytest
import torch

from nnunet_ssl.views.crops import (
    box_mask,
    crop_within,
    cut_views,
    mostly_usable,
    overlapping_corners,
    random_corners,
    shared_box,
    shared_fractions,
    shared_voxels,
)

CASES = [((12, 10, 9), (5, 4, 6)), ((16, 24, 16), (8, 16, 8)), ((10, 14), (4, 7)), ((9, 8, 4), (4, 4, 4))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def voxels_of(corner, crop) -> set[tuple[int, ...]]:
    """Every voxel of a crop."""
    return set(itertools.product(*(range(c, c + s) for c, s in zip(corner.tolist(), crop, strict=True))))


@pytest.mark.parametrize(
    ("size", "bounds", "expected"),
    [
        (160, (0.5, 0.75), 96),
        (160, (0.5, 0.8), 128),
        (40, (0.5, 0.75), 24),
        (56, (0.5, 0.75), 40),
        (16, (0.5, 0.8), 8),
        (24, (0.25, 0.5), 8),
        (40, (0.25, 0.5), 16),
        (512, (0.5, 0.75), 384),
        (128, (0.5, 0.8), 96),
        (320, (0.5, 0.8), 256),
        (64, (0.5, 0.8), 32),
        (7, (0.5, 0.75), 5),
        (1, (0.5, 0.75), 1),
    ],
)
def test_crop_within(size, bounds, expected):
    assert crop_within(size, *bounds) == expected


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
def test_a_crop_suits_the_stride_whenever_there_is_one_that_does(stride):
    for size in range(2 * stride, 400, stride):
        for low, high in [(0.5, 0.75), (0.5, 0.8), (0.25, 0.5)]:
            crop = crop_within(size, low, high)
            assert low * size <= crop <= high * size or size < 4
            possible = any(low * size <= c <= high * size for c in range(stride, size, stride))
            if possible and size % (2 * stride):  # the stride is the largest power of two in the size
                assert crop % stride == 0


@pytest.mark.parametrize(("region", "crop"), CASES)
def test_cut_views_against_slices(region, crop):
    image = torch.randn(3, 2, *region, generator=generator())
    corners = random_corners(3, 5, region, crop, generator(1))
    views = cut_views(image, corners, crop)
    assert views.shape == (15, 2, *crop)
    for b, k in itertools.product(range(3), range(5)):
        where = tuple(slice(c, c + s) for c, s in zip(corners[b, k].tolist(), crop, strict=True))
        assert torch.equal(views[3 * k + b], image[(b, slice(None), *where)])


def test_every_place_is_equally_likely():
    corners = random_corners(4000, 1, (6, 9), (4, 9), generator())[:, 0]
    assert np.unique(corners[:, 1]).tolist() == [0]
    counts = np.bincount(corners[:, 0], minlength=3) / 4000
    assert abs(counts - 1 / 3).max() < 0.04  # five standard deviations


@pytest.mark.parametrize(("region", "crop"), CASES)
def test_shared_voxels_against_sets(region, crop):
    first, second = (random_corners(4, 3, region, crop, generator(seed)) for seed in (1, 2))
    shared = shared_voxels(first, second, crop)
    start, extent = shared_box(torch.from_numpy(first), torch.from_numpy(second), crop)
    for b, k in itertools.product(range(4), range(3)):
        common = voxels_of(first[b, k], crop) & voxels_of(second[b, k], crop)
        assert shared[b, k] == len(common)
        if common:
            lowest = torch.tensor(sorted(common)).amin(dim=0)
            assert torch.equal(start[b, k], lowest - torch.from_numpy(first[b, k]))
            assert extent[b, k].prod() == len(common)


@pytest.mark.parametrize(("region", "crop"), [((8, 12, 4), (4, 4, 4)), ((6, 9), (3, 3))])
def test_shared_fractions_against_sets_and_sum_to_one_on_a_grid(region, crop):
    cells = itertools.product(*(range(0, r, c) for r, c in zip(region, crop, strict=True)))
    grid = np.array(list(cells))
    targets = random_corners(2, 6, region, crop, generator(4))
    fractions = shared_fractions(targets, grid, crop)
    size = len(voxels_of(grid[0], crop))
    for b, t, k in itertools.product(range(2), range(6), range(len(grid))):
        common = voxels_of(targets[b, t], crop) & voxels_of(grid[k], crop)
        assert fractions[b, t, k].item() == pytest.approx(len(common) / size)
    assert np.allclose(fractions.sum(axis=2), 1)


@pytest.mark.parametrize(("region", "crop"), CASES)
@pytest.mark.parametrize("least", [0.3, 0.5, 0.75])
def test_pairs_share_at_least_what_was_asked_and_stay_inside(region, crop, least):
    first, second = overlapping_corners(200, 2, region, crop, (least, 1.0), generator(5))
    room = np.array(region) - np.array(crop)
    for corners in (first, second):
        assert corners.shape == (200, 2, len(region))
        assert (corners >= 0).all()
        assert (corners <= room).all()
    share = shared_voxels(first, second, crop) / np.prod(crop)
    assert share.min() >= least - 1e-6
    if least < 0.75:  # else whole voxels leave no choice in the smallest crop
        assert not np.array_equal(first, second)


def test_overlap_is_drawn_from_the_range_where_voxels_and_room_allow():
    first, second = overlapping_corners(2000, 1, (200, 200, 200), (100, 100, 100), (0.4, 0.8), generator())
    share = (shared_voxels(first, second, (100,) * 3) / 1e6).flatten()
    assert 0.4 <= share.min() < 0.43
    assert 0.77 < share.max() < 0.83
    assert share.mean().item() == pytest.approx(0.6, abs=0.02)
    # With room for a sixth of the shift only on the first axis, the others take the rest.
    first, second = overlapping_corners(500, 1, (104, 200, 200), (100, 100, 100), (0.4, 0.4), generator())
    assert (shared_voxels(first, second, (100,) * 3) / 1e6).max() < 0.43


def test_the_place_of_pairs_has_no_preferred_side():
    first, second = overlapping_corners(4000, 1, (40, 40), (20, 20), (0.4, 0.8), generator())
    assert abs((first + second).mean(axis=(0, 1)) - 20).max() < 0.6
    assert abs((first - second).mean(axis=(0, 1))).max() < 0.6


def test_box_mask_against_loops():
    start, extent = torch.tensor([[1, 0, 2], [0, 3, 1]]), torch.tensor([[2, 4, 1], [3, 0, 2]])
    mask = box_mask(start, extent, (4, 5, 3))
    for b, voxel in itertools.product(range(2), itertools.product(range(4), range(5), range(3))):
        inside = all(s <= v < s + e for v, s, e in zip(voxel, start[b], extent[b], strict=True))
        assert mask[(b, 0, *voxel)] == inside


def test_mostly_usable():
    excluded = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    excluded[1, :, :2] = True
    excluded[2, :, :1] = True
    assert mostly_usable(excluded).tolist() == [True, False, True]


def test_a_crop_larger_than_its_region_is_refused():
    with pytest.raises(ValueError, match=r"crop of \(8, 8\) voxels cannot be taken from a region of \(8, 6\)"):
        random_corners(1, 1, (8, 6), (8, 8), generator())


def test_same_generator_state_same_pairs():
    draws = [overlapping_corners(3, 2, (20, 20), (10, 12), (0.5, 1), generator(s)) for s in (1, 1, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not np.array_equal(draws[0][0], draws[2][0])
