"""Rotation and scaling are decided before reading, and the result is what nnU-Net's transform gives on all it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform

from nnunet_ssl.trainers.data.augmentation import SCALING, AffineParams, Augmentation, matrix
from nnunet_ssl.trainers.data.finishing import Box, finish_box

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


def nnunets_own(
    size, in_plane, affine: AffineParams, mirrored: tuple[int, ...], image: torch.Tensor, mask: torch.Tensor
):
    """What batchgeneratorsv2's transforms make of the largest box."""
    spatial = SpatialTransform(
        size[1:] if in_plane else size,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=1,
        rotation=lambda dim, **_: affine.angles[dim],
        p_scaling=1,
        scaling=affine.scale,
        p_synchronize_scaling_across_axes=1,
        border_mode_seg="zeros",
    )
    data = {"image": image, "segmentation": mask.to(torch.int16)}
    for step in [Convert3DTo2DTransform(), spatial, Convert2DTo3DTransform()] if in_plane else [spatial]:
        data = step(**data)
    axes = [a + 1 for a in mirrored]
    return data["image"].flip(axes), data["segmentation"].flip(axes) > 0


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("by_products", [False, True], ids=["device", "worker"])
@pytest.mark.parametrize("geometry", sorted(GEOMETRIES))
def test_same_as_nnunet_on_the_largest_box(geometry, by_products, half):
    size, in_plane, largest = GEOMETRIES[geometry]
    axes = tuple(range(len(size)))
    augmentation = Augmentation(size, p=0.7, rotation=THIRTY, in_plane=in_plane, largest=largest, mirror_axes=axes)
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(2, *(s + 40 - s % 2 if s > 3 else s for s in size), generator=generator)
    volume = volume.half() if half else volume
    mask = volume[:1] > 0.5
    smaller, kinds, mirrorings = 0, set(), set()
    for seed in range(24):
        np.random.seed(seed)
        torch.manual_seed(seed)
        affine, mirrored = augmentation.draw(), augmentation.draw_mirrored()
        read = augmentation.read_size(affine)
        assert all(r <= most for r, most in zip(read, augmentation.largest_read(), strict=True))
        box = Box(cut(volume, read), cut(mask, read), affine, mirrored)
        ours, excluded = finish_box(box, size, by_products)
        assert ours.shape[1:] == excluded.shape[1:] == size
        assert excluded.dtype is torch.bool
        kinds.add((affine is not None and any(affine.angles), affine is not None and affine.scale != 1))
        mirrorings.add(mirrored)
        if affine is None:
            assert torch.equal(ours, cut(volume, size).flip([a + 1 for a in mirrored]))
            assert torch.equal(excluded, cut(mask, size).flip([a + 1 for a in mirrored]))
            continue
        smaller += np.prod(read) < np.prod(largest)
        image, hidden = nnunets_own(size, in_plane, affine, mirrored, cut(volume, largest).float(), cut(mask, largest))
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours, image, atol=2e-4, rtol=0)
        # Where both labels weigh the same, the smaller box may decide otherwise. Nobody knows what lies beyond the largest.
        alone, outside = finish_box(Box(box.image, None, affine, mirrored), size, by_products)
        assert torch.equal(alone, ours)
        outside = torch.zeros_like(hidden) if outside is None else outside
        assert (excluded != (hidden | outside)).float().mean() < 0.01
        assert outside.float().mean() < 0.3
    assert smaller > 6
    assert len(kinds) == 4
    assert len(mirrorings) > len(size)


@pytest.mark.parametrize("threshold", [-9.0, 0.0, 9.0], ids=["all", "half", "none"])
@pytest.mark.parametrize("geometry", sorted(GEOMETRIES))
def test_masks_are_exactly_nnunets_on_the_same_box(geometry, threshold):
    """Ties included: the mask is coarse, so that half of a voxel is excluded often. What lies beyond the box always is."""
    size, in_plane, largest = GEOMETRIES[geometry]
    augmentation = Augmentation(size, p=1, rotation=THIRTY, in_plane=in_plane, largest=largest)
    generator = torch.Generator().manual_seed(0)
    for number, seed in enumerate(range(12)):
        np.random.seed(seed)
        drawn = augmentation.draw()
        affine = (
            AffineParams((0.0,) * len(drawn.angles), 0.75) if number % 4 == 0 else drawn
        )  # a quarter of a voxel: many ties
        read = augmentation.read_size(affine)
        image = torch.randn(1, *read, generator=generator)
        mask = image > threshold
        _, ours = finish_box(Box(image, mask, affine, (0,)), size)
        _, theirs = nnunets_own(size, in_plane, affine, (0,), image, mask)
        outside, border = looked_beyond(size, affine, (0,), read, tuple((0, n) for n in read))
        assert torch.equal(ours | border, theirs | outside | border)


def looked_beyond(size, affine, mirrored, read, extent):
    """Whether the nearest voxel lies outside of the extent, in double precision, and where rounding decides that: [1, *size]."""
    still = len(size) - len(affine.angles)
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1).astype(float)
    for axis in mirrored:
        voxels[..., axis] = size[axis] - 1 - voxels[..., axis]
    looked = voxels - (np.array(size) - 1) / 2
    looked[..., still:] = looked[..., still:] @ matrix(affine).T
    looked += (np.array(read) - 1) / 2
    first, last = np.array(extent).T
    distance = np.minimum(looked - (first - 0.5), (last - 0.5) - looked).min(axis=-1)
    return tuple(torch.from_numpy(x)[None] for x in (distance < 0, abs(distance) < 1e-4))


@pytest.mark.parametrize("by_products", [False, True])
@pytest.mark.parametrize("geometry", sorted(GEOMETRIES))
def test_what_lies_outside_of_the_image_is_excluded(geometry, by_products):
    """Mirrored, turned, scaled or not, beside excluded voxels or without, wherever the image ends in the box."""
    size, in_plane, largest = GEOMETRIES[geometry]
    augmentation = Augmentation(size, p=0.5, rotation=THIRTY, in_plane=in_plane, largest=largest)
    generator = np.random.default_rng(0)
    found = set()
    for seed in range(40):
        np.random.seed(seed)
        affine, mirrored = augmentation.draw(), (0, len(size) - 1) if seed % 3 else ()
        read = augmentation.read_size(affine)
        extent = tuple((int(generator.integers(0, n // 2 + 1)), n - int(generator.integers(0, n // 2))) for n in read)
        if generator.random() < 0.3:
            extent = None
        whole = extent or tuple((0, n) for n in read)
        still = AffineParams((0.0,) * len(size), 1.0)
        outside, border = looked_beyond(size, affine or still, mirrored, read, whole)
        mask = (
            torch.rand(1, *read, generator=torch.Generator().manual_seed(seed)) > 0.5
            if generator.random() < 0.5
            else None
        )
        image = torch.ones(1, *read)
        _, without = finish_box(Box(image, mask, affine, mirrored), size, by_products)
        _, ours = finish_box(Box(image, mask, affine, mirrored, extent), size, by_products)
        ours = torch.zeros_like(outside) if ours is None else ours
        expected = outside if without is None else outside | without
        assert torch.equal(ours | border, expected | border), (seed, affine)
        found.add((affine is None, extent is None, mask is None))
    assert len(found) >= 7


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
    assert augmentation.read_size(AffineParams((0.0, 0.0, 0.0), 1.0)) == (8, 10, 12)
    assert augmentation.read_size(AffineParams((0.0, 0.0, 0.0), 0.7)) == (6, 8, 10)
    assert Augmentation((8, 8)).draw() is None
