"""Cut-outs against loop-written twins."""

import itertools

import numpy as np
import pytest
import torch

from nnunet_ssl.views.cutout import first_boxes, multiply_edges, random_boxes, random_cutout, union_of_boxes

SIZES = [(12, 10, 9), (16, 14)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", SIZES)
def test_union_and_order_against_loops(size):
    start, stop = random_boxes(3, size, 6, (0.05, 0.4), generator())
    budget = np.array([0.0, 40.0, 1e9])
    used = first_boxes(start, stop, budget)
    mask = union_of_boxes(start, stop, used, size, torch.device("cpu"))
    # What a GPU computes instead.
    product = [multiply_edges(a[u], z[u], size, mask.device) for a, z, u in zip(start, stop, used, strict=True)]
    assert torch.equal(torch.stack(product), mask[:, 0])
    for b in range(3):
        slow, dropped = torch.zeros(size, dtype=torch.bool), 0
        for k in range(6):
            if dropped >= budget[b]:
                break
            box = tuple(slice(int(a), int(z)) for a, z in zip(start[b, k], stop[b, k], strict=True))
            slow[box] = True
            dropped += slow[box].numel()
        assert torch.equal(mask[b, 0], slow)
    assert not mask[0].any()


@pytest.mark.parametrize("size", [(40, 30, 20), (8, 5, 6)])
def test_boxes_have_the_promised_edges(size):
    start, stop = random_boxes(50, size, 40, (0.05, 0.25), generator(1))
    for axis, length in enumerate(size):
        shortest, longest = max(int(0.05 * length), 1), max(int(0.25 * length), 1)
        edge = (stop - start)[..., axis]
        assert (edge.min(), edge.max()) == (shortest, longest)
        assert start[..., axis].min() == 0
        assert stop[..., axis].max() == length


@pytest.mark.parametrize("size", [(32, 32, 32), (20, 28, 24), (48, 40)])
def test_share_that_is_cut_out(size):
    share = random_cutout(300, size, 0.3, (0.05, 0.25), generator(2)).flatten(1).float().mean(dim=1)
    # The summed volume is uniform in [0, 0.3], plus the rest of the last box; overlaps make the union smaller.
    assert 0.11 < share.mean() < 0.17
    assert share.max() < 0.34
    assert share.quantile(0.95) > 0.2  # there are enough boxes to get there


def test_nothing_is_cut_out_when_nothing_may():
    assert not random_cutout(4, (8, 8, 8), 0.0, (0.05, 0.25), generator()).any()


def test_same_generator_state_same_cutout():
    first, again, other = (random_cutout(2, (12, 12, 12), 0.3, (0.05, 0.25), generator(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_voxel_is_hit_about_equally_often_inside():
    hits = random_cutout(3000, (16, 16), 0.3, (0.1, 0.25), generator(5)).float().mean(dim=(0, 1))
    inside = hits[4:, 4:]
    assert inside.std() / inside.mean() < 0.15
    corners = list(itertools.product((0, 15), repeat=2))
    assert min(hits[c] for c in corners) > 0.01


def test_images_that_are_kept_stay_whole_and_the_others_are_as_they_were():
    kept = np.array([False, True, False])
    size, extent = (12, 12, 12), (0.05, 0.25)
    cut, whole = (random_cutout(3, size, 0.3, extent, generator(3), kept=k) for k in (kept, None))
    assert not cut[1].any()
    assert whole[1].any()
    assert torch.equal(cut[[0, 2]], whole[[0, 2]])
