"""The corruptions of Models Genesis against loop-written twins."""

import itertools

import numpy as np
import pytest
import torch

from nnunet_ssl.views.bezier import apply_curve, bezier_intensity, random_curves
from nnunet_ssl.views.flips import random_flips
from nnunet_ssl.views.local_shuffle import box_corners, local_shuffle, places_by_box, random_cuts, random_starts
from nnunet_ssl.views.painting import boxes_to_mask, random_painting, uniform_integers
from nnunet_ssl.views.rng import Host
from nnunet_ssl.views.value_range import value_range


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- value range ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 1, 4, 5, 3), (3, 2, 6, 7)])
def test_value_range_against_loops(shape):
    image = torch.randn(shape, generator=seeded())
    excluded = torch.rand(shape[0], 1, *shape[2:], generator=seeded(1)) < 0.3
    excluded[-1] = True
    low, high = value_range(image, excluded)
    assert low.shape == high.shape == (*shape[:2], *(1,) * (len(shape) - 2))
    for b, c in itertools.product(range(shape[0]), range(shape[1])):
        values = [
            v for v, e in zip(image[b, c].flatten().tolist(), excluded[b].flatten().tolist(), strict=True) if not e
        ]
        assert (low[b, c].item(), high[b, c].item()) == pytest.approx((min(values), max(values)) if values else (0, 0))


@pytest.mark.parametrize("shape", [(2, 2, 20, 24, 28), (1, 1, 64, 64, 48)])
def test_value_range_leaves_outliers_out(shape):
    """A few hot voxels do not stretch it; many voxels are looked at in part."""
    image = torch.randn(shape, generator=seeded())
    image.view(*shape[:2], -1)[..., -9:-5] = 1e4
    excluded = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
    excluded[:, :, :5] = True
    image[:, :, 1:5] = -1e4
    found = torch.stack(value_range(image, excluded)).view(2, *shape[:2])
    values = image[:, :, 5:].flatten(2).numpy()
    expected = torch.from_numpy(np.stack(np.percentile(values, (0.1, 99.9), axis=-1)))
    torch.testing.assert_close(found.double(), expected.double(), atol=0.25, rtol=0)


# ---- intensity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [50, 1024])
def test_curves_against_numpy(points):
    """Bernstein's formula point by point, sorted as the paper's code sorts."""
    x, y = random_curves(20, seeded(3), points)
    generator = seeded(3)
    control = torch.rand(20, 4, 1, generator=generator)[..., 0].double().tolist()
    falls = (torch.rand(20, 1, generator=generator) < 0.5)[:, 0].tolist()
    assert 0 < sum(falls) < 20
    for sample, (u1, u2, u3, u4) in enumerate(control):
        curve = []
        for k in range(points):
            t = k / (points - 1)
            weights = [(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3]
            curve.append(
                [sum(w * p for w, p in zip(weights, axis, strict=True)) for axis in ((0, u1, u3, 1), (0, u2, u4, 1))]
            )
        xs = np.sort([p[0] for p in curve])
        ys = [p[1] for p in reversed(curve)] if falls[sample] else np.sort([p[1] for p in curve])
        np.testing.assert_allclose(x[sample], xs, atol=1e-5)
        np.testing.assert_allclose(y[sample], ys, atol=1e-5)
        values = torch.rand(200, generator=seeded(sample))
        expected = np.interp(values.numpy(), xs, ys)
        np.testing.assert_allclose(apply_curve(values, x[sample], y[sample]), expected, atol=2e-3)


def test_reading_a_curve_off_at_even_distances_changes_nothing_that_can_be_seen():
    x, y = random_curves(40, seeded(5))
    values = torch.cat([torch.tensor([0.0, 1.0]), torch.rand(100_000, generator=seeded(6))])
    for one, other in zip(x, y, strict=True):
        found, exact = apply_curve(values, one, other).numpy(), np.interp(values.numpy(), one, other)
        assert found[:2] == pytest.approx(exact[:2], abs=1e-6)
        error = abs(found - exact)
        assert error.mean() < 1e-5
        assert np.quantile(error, 0.999) < 5e-4
        # Where a curve is as good as vertical, 1 / 65536 of the range is a visible step of it: for very few voxels.
        assert error.max() < 0.02


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (-1000.0, 400.0), (0.5, 0.1)])
def test_intensity_keeps_the_range_of_z_scores_and_of_hounsfield_units(offset, scale):
    image = offset + scale * torch.randn(6, 2, 8, 9, 7, generator=seeded(1))
    low, high = value_range(image, torch.zeros(6, 1, 8, 9, 7, dtype=torch.bool))
    mapped = bezier_intensity(image, low, high, seeded(2))
    new_low, new_high = mapped.amin((2, 3, 4), keepdim=True), mapped.amax((2, 3, 4), keepdim=True)
    torch.testing.assert_close(new_low, low, rtol=1e-4, atol=1e-4 * scale)
    torch.testing.assert_close(new_high, high, rtol=1e-4, atol=1e-4 * scale)
    # Unlike a map that assumes [0, 1], this one keeps the voxels apart: nothing is clamped.
    for sample in range(6):
        assert mapped[sample, 0].unique().numel() > 0.95 * image[sample, 0].unique().numel()


def test_intensity_curve_rises_or_falls_from_end_to_end():
    image = torch.linspace(-3, 5, 64).expand(40, 1, 64).view(40, 1, 8, 8)
    low, high = value_range(image, torch.zeros(40, 1, 8, 8, dtype=torch.bool))
    mapped = bezier_intensity(image, low, high, seeded(0)).flatten(1)
    ends = {(round(r[0].item(), 3), round(r[-1].item(), 3)) for r in mapped}
    assert ends == {(-3.0, 5.0), (5.0, -3.0)}
    assert (mapped - image.flatten(1)).abs().mean() > 0.5


def test_constant_and_wholly_excluded_images_survive():
    image = torch.full((2, 1, 4, 4), 3.0)
    excluded = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    excluded[1] = True
    mapped = bezier_intensity(image, *value_range(image, excluded), seeded())
    assert torch.equal(mapped[0], image[0])
    assert mapped.isfinite().all()


# ---- local shuffling ------------------------------------------------------------------------------------------------


def slow_starts(length, max_width, generator):
    widths = torch.randint(1, max_width + 1, (1, length + max_width), generator=generator)[0].tolist()
    offset = torch.randint(max_width, (1, 1), generator=generator).item()
    starts, position = [], -offset
    for width in widths:
        starts += [max(position, 0)] * len([v for v in range(position, position + width) if 0 <= v < length])
        position += width
    return starts


@pytest.mark.parametrize(("length", "width"), [(16, 4), (40, 7), (5, 5), (9, 1), (1, 1)])
def test_cuts_against_loops(length, width):
    for seed in range(20):
        assert random_starts(1, length, width, seeded(seed))[0].tolist() == slow_starts(length, width, seeded(seed))


def test_widths_are_uniform():
    starts = random_starts(50, 2000, 4, seeded())
    widths = np.concatenate([np.unique(row, return_counts=True)[1][1:-1] for row in starts])
    shares = np.bincount(widths, minlength=5)[1:] / len(widths)
    assert abs(shares - 0.25).max() < 0.02


def boxes_of(corner):
    members: dict[int, list[int]] = {}
    for voxel, box in enumerate(corner.tolist()):
        members.setdefault(box, []).append(voxel)
    return members


@pytest.mark.parametrize(("size", "width"), [((8, 12, 10), (3, 4, 2)), ((9, 16), (4, 4)), ((6, 5, 1), (2, 3, 1))])
def test_boxes_are_boxes_named_after_their_corner(size, width):
    for starts in zip(*random_cuts(3, size, width, seeded(1)), strict=True):
        corner = box_corners(starts, torch.device("cpu"))
        place = places_by_box(starts, corner.device)
        assert torch.equal(place.argsort(), corner.argsort(stable=True))  # the list of all voxels, box by box
        for box, voxels in boxes_of(corner).items():
            places = np.array(np.unravel_index(voxels, size))
            low, extent = places.min(axis=1), np.ptp(places, axis=1) + 1
            assert extent.prod() == len(voxels)
            assert (extent <= width).all()
            assert np.ravel_multi_index(low, size) == box


def slow_shuffle(image, width, share, generator):
    """Box by box: list its voxels, sort them by their random keys, write them back."""
    batch, channels, *size = image.shape
    cuts = random_cuts(batch, size, width, generator)
    corner = torch.stack([box_corners(starts, torch.device("cpu")) for starts in zip(*cuts, strict=True)])
    draw = torch.rand(corner.shape, generator=generator)
    key = torch.randint(2**24, corner.shape, generator=generator)
    out = image.flatten(2).clone()
    for b in range(batch):
        for box, voxels in boxes_of(corner[b]).items():
            if draw[b, box] < share[b]:
                for target, source in zip(voxels, sorted(voxels, key=lambda v: (key[b, v].item(), v)), strict=True):
                    for c in range(channels):
                        out[b, c, target] = image[b, c].flatten()[source]
    return out.view_as(image)


@pytest.mark.parametrize(("size", "width"), [((8, 12, 10), (3, 4, 2)), ((9, 16), (4, 4)), ((7, 7, 7), (7, 7, 7))])
def test_shuffle_against_loops(size, width):
    image = torch.randn(3, 2, *size, generator=seeded(9))
    share = np.array([0.0, 0.6, 1.0])
    fast, slow = (f(image, width, share, seeded(4)) for f in (local_shuffle, slow_shuffle))
    assert torch.equal(fast, slow)
    assert torch.equal(fast[0], image[0])
    assert not torch.equal(fast[1], image[1])
    assert torch.equal(fast.flatten(2).sort().values, image.flatten(2).sort().values)


def test_shuffled_share():
    image = torch.arange(40.0**3).view(1, 1, 40, 40, 40)
    shuffled = local_shuffle(image, (8, 8, 8), np.array([0.78]), seeded(0))
    assert (shuffled != image).float().mean().item() == pytest.approx(0.78, abs=0.06)


def test_every_permutation_is_equally_likely():
    """One box of three voxels, 6 orders; the box's own corner must not be favoured."""
    image = torch.arange(3.0).expand(6000, 1, 3).unsqueeze(-1)
    boxes = random_starts(6000, 3, 3, seeded(1))
    whole = (boxes == 0).all(axis=1)
    shuffled = local_shuffle(image, (3, 1), np.full(6000, 0.5), seeded(1)).view(-1, 3)[whole]
    moved = shuffled[(shuffled != torch.arange(3.0)).any(dim=1)]
    codes = (moved * torch.tensor([9.0, 3.0, 1.0])).sum(dim=1).unique(return_counts=True)[1].float()
    assert len(codes) == 5
    assert (codes / codes.sum() - 0.2).abs().max() < 0.05


# ---- painting -------------------------------------------------------------------------------------------------------


def test_whole_numbers_are_uniform_with_both_ends():
    low, high = np.full(30000, 2), np.full(30000, 5)
    drawn = uniform_integers(low, high, Host(seeded()))
    assert np.unique(drawn).tolist() == [2, 3, 4, 5]
    assert abs(np.bincount(drawn)[2:] / 30000 - 0.25).max() < 0.015
    assert np.array_equal(uniform_integers(low, low, Host(seeded())), low)


@pytest.mark.parametrize("size", [(6, 9, 5), (8, 7)])
def test_boxes_against_loops(size):
    length = np.broadcast_to(np.array(size), (3, 4, len(size)))
    widths = uniform_integers(np.ones_like(length), length, Host(seeded(1)))
    starts = uniform_integers(np.zeros_like(length), length - widths, Host(seeded(2)))
    active = (torch.rand(3, 4, generator=seeded(3)) < 0.6).numpy()
    outside = np.array([False, True, False])
    mask = boxes_to_mask(starts, widths, active, outside, size, torch.device("cpu"))
    for b in range(3):
        slow = torch.zeros(size, dtype=torch.bool)
        for n in range(4):
            if active[b, n]:
                slow[
                    tuple(slice(s, s + w) for s, w in zip(starts[b, n].tolist(), widths[b, n].tolist(), strict=True))
                ] = True
        assert torch.equal(mask[b, 0], slow ^ bool(outside[b]))


@pytest.mark.parametrize("size", [(40, 56, 42), (28, 35)])
def test_one_small_box(size):
    """In-painting: a sixth to a third of each axis, three voxels off the border."""
    masks = random_painting(60, size, 1.0, 1, 1.0, seeded(0))
    for mask in masks[:, 0]:
        places = mask.nonzero()
        low, high = places.amin(0).tolist(), places.amax(0).tolist()
        for s, a, b in zip(size, low, high, strict=True):
            assert s // 6 <= b - a + 1 <= s // 3
            assert a >= 3
            assert b < s - 3
        assert len(places) == np.prod([b - a + 1 for a, b in zip(low, high, strict=True)])


@pytest.mark.parametrize("size", [(40, 56, 42), (28, 35)])
def test_one_window(size):
    """Out-painting: everything but a window of three to four sevenths less than each axis; it always comes."""
    for mask in random_painting(60, size, 0.0, 1, 0.0, seeded(0))[:, 0]:
        places = (~mask).nonzero()
        low, high = places.amin(0).tolist(), places.amax(0).tolist()
        for s, a, b in zip(size, low, high, strict=True):
            assert s - 4 * s // 7 <= b - a + 1 <= s - 3 * s // 7
            assert a >= 3
            assert b < s - 3


def test_kinds_and_numbers_of_boxes():
    inner = random_painting(300, (42, 42), 1.0, 5, 0.95, seeded(1)).flatten(1).float().mean(dim=1)
    outer = random_painting(300, (42, 42), 0.0, 5, 0.95, seeded(1)).flatten(1).float().mean(dim=1)
    assert inner.max() < 5 / 9
    assert (inner == 0).float().mean().item() == pytest.approx(0.05, abs=0.03)
    assert outer.max() < 1
    assert 0.1 < outer.mean() < 0.6
    mixed = random_painting(300, (42, 42), 0.2, 5, 0.0, seeded(1)).flatten(1).float().mean(dim=1)
    assert (mixed == 0).float().mean().item() == pytest.approx(0.2, abs=0.07)  # in-painting without a box


@pytest.mark.parametrize("size", [(3, 8, 4), (1, 20, 20), (4, 4)])
def test_tiny_patches_can_be_painted(size):
    for inner in (0.0, 1.0):
        masks = random_painting(50, size, inner, 5, 0.95, seeded(2))
        assert masks.shape == (50, 1, *size)
        assert masks.any()
        assert not masks.all()


# ---- flips ----------------------------------------------------------------------------------------------------------


def test_all_axes_are_flipped_equally_often_and_as_often_as_the_recipe_says():
    flips = random_flips(20000, 3, 0.4, seeded())
    rng, slow = np.random.default_rng(0), np.zeros(3)
    for _ in range(20000):
        axes, count = np.zeros(3, dtype=bool), 0
        while rng.random() < 0.4 and count < 3:
            axes[rng.integers(3)] ^= True
            count += 1
        slow += axes
    np.testing.assert_allclose(flips.mean(axis=0), slow / 20000, atol=0.015)


def test_everything_follows_the_generator():
    image = torch.randn(2, 1, 12, 14, 10, generator=seeded())
    calls = [
        lambda g: local_shuffle(image, (3, 3, 3), np.ones(2), g),
        lambda g: bezier_intensity(image, torch.full((2, 1, 1, 1, 1), -4.0), torch.full((2, 1, 1, 1, 1), 4.0), g),
        lambda g: random_painting(2, (12, 14, 10), 0.5, 5, 0.9, g),
        lambda g: torch.from_numpy(random_flips(64, 3, 0.4, g)),
    ]
    for call in calls:
        assert torch.equal(call(seeded(5)), call(seeded(5)))
        assert not torch.equal(call(seeded(5)), call(seeded(6)))
