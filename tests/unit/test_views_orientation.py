"""Quarter turns and mirrorings against loops over the samples."""

import itertools

import numpy as np
import pytest
import torch

from nnunet_ssl.views.orientation import mirror, mirrored_and_turned, turn


@pytest.mark.parametrize(("size", "axes"), [((3, 5, 5), (-2, -1)), ((4, 4, 6), (2, 3)), ((5, 5), (-2, -1))])
def test_quarter_turns_are_those_of_rot90(size, axes):
    x = torch.randn(8, 2, *size, generator=torch.Generator().manual_seed(0))
    turns = np.arange(8) % 4
    slow = torch.stack([torch.rot90(x[i], int(turns[i]), [a - 1 if a > 0 else a for a in axes]) for i in range(8)])
    assert torch.equal(turn(x, turns, axes), slow)


def test_a_rectangle_has_four_different_orientations_that_are_their_own_inverse():
    x = torch.randn(1, 1, 3, 4, 6, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1, -1)
    classes = np.arange(4)
    turned = turn(x, classes)
    slow = [x[0], x[0].flip(-2), torch.rot90(x[0], 2, [-2, -1]), x[0].flip(-1)]
    assert torch.equal(turned, torch.stack(slow))
    assert all(not torch.equal(turned[i], turned[j]) for i, j in itertools.combinations(range(4), 2))
    assert torch.equal(turn(turned, classes), x)


@pytest.mark.parametrize("size", [(3, 4, 5), (6, 4)])
def test_mirror_against_loops(size):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 2, *size, generator=generator)
    flips = (torch.rand(6, len(size), generator=generator) < 0.5).numpy()
    slow = torch.stack([x[i].flip([a + 1 for a in range(len(size)) if flips[i, a]]) for i in range(6)])
    assert torch.equal(mirror(x, flips), slow)


def test_masks_turn_along_with_their_images():
    x = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(turn(x > 0, np.arange(4)), turn(x, np.arange(4)) > 0)


@pytest.mark.parametrize(("size", "axes"), [((5, 5, 4), (2, 3)), ((3, 5, 4), (2, 3)), ((5, 5), (-2, -1))])
def test_both_at_once_are_one_after_the_other(size, axes):
    cases = np.array(list(itertools.product(*([[False, True]] * len(size)), range(4))))
    flips, turns = cases[:, :-1].astype(bool), cases[:, -1]
    x = torch.randn(len(cases), 2, *size, generator=torch.Generator().manual_seed(3))
    found = torch.stack(list(mirrored_and_turned(x, flips, turns, axes)))
    assert torch.equal(found, turn(mirror(x, flips), turns, axes))
