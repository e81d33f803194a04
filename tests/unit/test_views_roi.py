"""Pooling of boxes against a loop-written twin."""

import itertools

import pytest
import torch

from nnunet_ssl.views.roi import SAMPLES, coarsen, pool_boxes


def interpolate_at(features, voxel, image):
    """Linear interpolation of [C, *spatial] at a place given in voxels of the image, corner by corner."""
    value = torch.zeros(features.shape[0])
    place = [v / s * f - 0.5 for v, s, f in zip(voxel, image, features.shape[1:], strict=True)]
    place = [min(max(p, 0.0), f - 1.0) for p, f in zip(place, features.shape[1:], strict=True)]
    for corner in itertools.product((0, 1), repeat=len(image)):
        index = [min(int(p) + c, f - 1) for p, c, f in zip(place, corner, features.shape[1:], strict=True)]
        weight = 1.0
        for p, c in zip(place, corner, strict=True):
            weight *= (p - int(p)) if c else 1 - (p - int(p))
        value += weight * features[(slice(None), *index)]
    return value


@pytest.mark.parametrize(
    ("image", "resolution", "grid"), [((16, 24, 8), (4, 6, 2), (3, 2, 2)), ((12, 20), (6, 5), (2, 4))]
)
def test_pool_boxes_against_loops(image, resolution, grid):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, *resolution, generator=generator)
    start = torch.tensor([[0] * len(image), [2] * len(image)])
    extent = torch.tensor([list(image), [s // 2 + 1 for s in image]])
    pooled = pool_boxes(features, start, extent, image, grid)
    assert pooled.shape == (2, 3, *grid)
    for b, cell in itertools.product(range(2), itertools.product(*(range(g) for g in grid))):
        samples = []
        for sub in itertools.product(range(SAMPLES), repeat=len(image)):
            share = [(c * SAMPLES + s + 0.5) / (g * SAMPLES) for c, s, g in zip(cell, sub, grid, strict=True)]
            voxel = [start[b, a].item() + share[a] * extent[b, a].item() for a in range(len(image))]
            samples.append(interpolate_at(features[b], voxel, image))
        assert torch.allclose(pooled[(b, slice(None), *cell)], torch.stack(samples).mean(dim=0), atol=1e-5)


def test_the_same_place_in_two_views_has_the_same_features():
    ramp = torch.stack(torch.meshgrid(*(torch.arange(40.0),) * 3, indexing="ij"))
    first, second, crop = torch.tensor([[3, 8, 0]]), torch.tensor([[9, 2, 5]]), (24, 24, 24)
    views = [ramp[(slice(None), *(slice(c, c + 24) for c in corner[0].tolist()))][None] for corner in (first, second)]
    extent = 24 - (first - second).abs()
    pooled = [
        pool_boxes(view, (other - own).clamp(min=0), extent, crop, (3, 3, 3))
        for view, own, other in zip(views, (first, second), (second, first), strict=True)
    ]
    assert torch.allclose(*pooled, atol=1e-3)


def test_coarsen_never_enlarges():
    x = torch.randn(1, 2, 8, 3, 16)
    assert coarsen(x, (4, 4, 4)).shape == (1, 2, 4, 3, 4)
    assert torch.allclose(coarsen(x, (4, 4, 4))[0, 0, 0, 0, 0], x[0, 0, :2, 0, :4].mean())
