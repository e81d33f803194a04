"""Rotation and scaling are decided before reading, and the result is what nnU-Net's transform gives on all it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform

from nnunet_ssl.trainers.augmentation import SCALING, Augmentation, Turn

THIRTY = (-np.pi / 6, np.pi / 6)
GEOMETRIES = {
    "cube": ((16, 16, 16), False, (26, 26, 26)),
    "box": ((12, 20, 16), False, (28, 30, 28)),
    "in_plane": ((3, 20, 16), True, (3, 30, 30)),
    "flat": ((20, 16), False, (30, 30)),
}


def cut(volume: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """The centre of a volume."""
    starts = [(full - s) // 2 for full, s in zip(volume.shape[1:], size, strict=True)]
    return volume[(slice(None), *(slice(a, a + s) for a, s in zip(starts, size, strict=True)))]


@pytest.mark.parametrize("geometry", sorted(GEOMETRIES))
def test_same_as_nnunet_on_the_largest_box(geometry):
    size, in_plane, largest = GEOMETRIES[geometry]
    augmentation = Augmentation(size, p=1, rotation=THIRTY, in_plane=in_plane, largest=largest)
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(2, *(s + 40 - s % 2 if s > 3 else s for s in size), generator=generator)
    mask = (volume[:1] > 1).to(torch.int16)
    smaller = 0
    for seed in range(12):
        np.random.seed(seed)
        turn = augmentation.draw()
        read = augmentation.read_size(turn)
        assert all(r <= most for r, most in zip(read, largest, strict=True))
        smaller += np.prod(read) < np.prod(largest)
        ours, excluded = augmentation.apply(cut(volume, read), cut(mask, read), turn)
        angles = turn.angles
        reference = SpatialTransform(
            size[1:] if in_plane else size,
            patch_center_dist_from_border=0,
            random_crop=False,
            p_rotation=1,
            rotation=lambda dim, angles=angles, **_: angles[dim],
            p_scaling=1,
            scaling=turn.scale,
            p_synchronize_scaling_across_axes=1,
        )
        data = {"image": cut(volume, largest), "segmentation": cut(mask, largest)}
        for step in [Convert3DTo2DTransform(), reference, Convert2DTo3DTransform()] if in_plane else [reference]:
            data = step(**data)
        assert ours.shape[1:] == size
        torch.testing.assert_close(ours, data["image"], atol=2e-4, rtol=0)
        # Labels are rounded: where both are equally near, the smaller box may decide otherwise.
        assert (excluded != data["segmentation"]).float().mean() < 0.01
    assert smaller > 6


def test_decisions_have_nnunets_probabilities_and_ranges():
    augmentation = Augmentation((8, 8, 8), p=0.2, rotation=THIRTY, largest=(14, 14, 14))
    np.random.seed(0)
    turns = [augmentation.draw() for _ in range(4000)]
    drawn = [t for t in turns if t is not None]
    rotated = np.array([t.angles for t in drawn if any(t.angles)])
    scaled = np.array([t.scale for t in drawn if t.scale != 1])
    assert len(rotated) / 4000 == pytest.approx(0.2, abs=0.025)
    assert len(scaled) / 4000 == pytest.approx(0.2, abs=0.025)
    assert len(drawn) / 4000 == pytest.approx(0.36, abs=0.03)
    assert rotated.std() == pytest.approx(np.pi / 3 / 12**0.5, rel=0.05)
    assert abs(np.corrcoef(rotated.T)[0, 1]) < 0.15
    assert scaled.min() >= SCALING[0]
    assert scaled.max() <= SCALING[1]
    assert scaled.mean() == pytest.approx(1.05, abs=0.03)


def test_nothing_more_is_read_for_a_patch_that_stays_as_it_is():
    augmentation = Augmentation((8, 10, 12), p=0.2, rotation=THIRTY, largest=(20, 20, 20))
    assert augmentation.read_size(None) == (8, 10, 12)
    assert augmentation.read_size(Turn((0.0, 0.0, 0.0), 1.0)) == (8, 10, 12)
    assert augmentation.read_size(Turn((0.0, 0.0, 0.0), 0.7)) == (6, 8, 10)
    assert Augmentation((8, 8)).draw() is None
