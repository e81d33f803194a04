"""VoCo: the grid, the overlaps, what counts, that it learns."""

import pytest
import torch

from nnunet_ssl.errors import BackboneError
from nnunet_ssl.methods.voco import VoCo, VoCoConfig
from nnunet_ssl.settings.blocks import read_config

METHOD = VoCo
PATCH = (32, 48, 16)


@pytest.mark.parametrize(
    ("patch", "config", "region", "crop"),
    [
        ((160, 160, 160), {}, (256, 256, 64), (64, 64, 64)),
        ((160, 160, 160), {"grid": (2, 2, 2)}, (160, 128, 160), None),
        ((160, 160, 160), {"crop_size": (80, 80, 160)}, (160, 160, 160), (80, 80, 160)),
        ((40, 56, 40), {}, (32, 48, 32), (16, 24, 16)),
        ((28, 256, 256), {}, (24, 256, 256), (12, 128, 128)),
        ((512, 448), {}, (512, 384), (256, 192)),
        ((64, 64, 64), {"grid": (4, 4, 1)}, (64, 64, 64), (16, 16, 64)),
    ],
)
def test_views(patch, config, region, crop):
    views = VoCo.views(VoCoConfig(**config), patch)
    if crop is None:
        grid = config["grid"]
        assert views.region_size == tuple(g * c for g, c in zip(grid, views.network_size, strict=True))
        assert all(r <= p for r, p in zip(views.region_size, patch, strict=True))
    else:
        assert (views.region_size, views.network_size) == (region, crop)


def test_crops_and_overlaps_against_loops(make, batch_of, prepared):
    method = make("unet", target_crops=5).eval()
    batch = batch_of()
    inputs = prepared(method, batch)
    crop, size = method.backbone.patch_size, batch["image"].shape[2:]
    starts = [
        (x, y, z)
        for x in range(0, size[0], crop[0])
        for y in range(0, size[1], crop[1])
        for z in range(0, size[2], crop[2])
    ]
    crops = inputs["crops"].view(len(starts) + 5, 3, 1, *crop)
    for b in range(3):
        corners = starts + [tuple(c.tolist()) for c in inputs["target_corners"][b]]
        for k, corner in enumerate(corners):
            where = tuple(slice(c, c + s) for c, s in zip(corner, crop, strict=True))
            assert torch.equal(crops[k, b], batch["image"][(b, slice(None), *where)])
        for t, corner in enumerate(corners[len(starts) :]):
            for k, base in enumerate(starts):
                share = 1.0
                for c, s, width in zip(corner, base, crop, strict=True):
                    share *= max(width - abs(c - s), 0) / width
                assert inputs["overlap"][b, t, k].item() == pytest.approx(share, abs=1e-6)
    assert torch.allclose(inputs["overlap"].sum(dim=2), torch.ones(3, 5))


def test_one_image_is_enough(make, batch_of, prepared):
    method = make("unet")
    output = method(prepared(method, batch_of(number=1)))
    output.loss.backward()
    assert output.loss > 0


def test_a_mostly_excluded_image_does_not_count(make, batch_of, prepared):
    method = make("unet").eval()
    batch = batch_of()
    batch["excluded"][1] = True
    inputs = prepared(method, batch)
    rows = torch.tensor([0, 2])
    rest = {k: v.unflatten(0, (-1, 3))[:, rows].flatten(0, 1) for k, v in inputs.items()}
    assert torch.allclose(method(inputs).loss, method(rest).loss, atol=1e-5)


def test_preview_paints_the_overlap_into_the_grid(make, batch_of, prepared):
    method = make("unet").eval()
    inputs = prepared(method, batch_of())
    preview = method(inputs).preview
    assert preview["base_crops"].unique().tolist() == list(range(1, inputs["overlap"].shape[2] + 1))
    voxels = preview["target_crop"][0].sum().item()
    for k, share in enumerate(inputs["overlap"][0, 0].tolist(), start=1):
        cell = preview["base_crops"][0] == k
        assert (preview["target_crop"][0] & cell).sum().item() == pytest.approx(share * voxels)
        assert preview["overlap_share"][0][cell].unique().item() == pytest.approx(share, abs=1e-5)


def test_unfit_sizes_and_settings_are_refused(make):
    with pytest.raises(BackboneError, match="not a multiple"):
        make("unet", crop_size=(10, 14, 10))
    with pytest.raises(ValueError, match="nothing to tell apart"):
        VoCo.views(VoCoConfig(crop_size=(40, 40, 40)), (40, 40, 40))
    with pytest.raises(ValueError, match=r"grid .* has 2 axes"):
        VoCo.views(VoCoConfig(grid=(2, 2)), (40, 40, 40))
    for wrong in ({"target_crops": 0}, {"grid": (1, 1, 1)}, {"apart_weight": -1}, {"embedding_dim": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            read_config(VoCoConfig, wrong, "here")


def best_constant(overlap: torch.Tensor) -> float:
    """Loss of the best similarity that is the same everywhere, with bases that are all different."""
    values = torch.linspace(0, 0.999, 200).view(-1, 1, 1, 1)
    near = (overlap * -torch.log(1 - (overlap - values).abs() + 1e-6)).sum(dim=(1, 2, 3)) / overlap.sum()
    return (near + values.flatten().square()).min().item()


@pytest.mark.parametrize(
    ("kind", "patch", "config"), [("unet", (32, 32), {}), ("primus", (32, 32, 8), {"grid": (2, 2, 1)})]
)
def test_learns_where_crops_lie(kind, patch, config, make, prepared, smooth, train, mean_term):
    # Every image is the same anatomy with a variation of its own.
    images = smooth(1, patch, seed=5) + 0.4 * smooth(6, patch)
    method = make(kind, patch, augmentation=0.0, **config)
    outputs = train(method, images, 60, 2e-3)
    overlap = prepared(method, {"image": images, "excluded": torch.zeros_like(images, dtype=torch.bool)})["overlap"]
    assert sum(o.loss.item() for o in outputs) / 8 < 0.8 * best_constant(overlap)
    assert mean_term(outputs, "positive_similarity") > mean_term(outputs, "negative_similarity") + 0.25
    assert mean_term(outputs, "explained_variance") > 0.3
    assert mean_term(outputs, "spread") > 0.5
    assert mean_term(outputs, "effective_rank") > 2
