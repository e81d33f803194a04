"""Consistent views: which features meet, what counts, that nothing collapses."""

import numpy as np
import pytest
import torch

from nnunet_ssl.errors import BackboneError
from nnunet_ssl.methods.consistent_views import ConsistentViews, ConsistentViewsConfig
from nnunet_ssl.settings.blocks import read_config
from nnunet_ssl.views.crops import shared_voxels

METHOD = ConsistentViews


@pytest.mark.parametrize(
    ("patch", "crop"),
    [((160, 160, 160), (128, 128, 128)), ((40, 56, 40), (32, 40, 32)), ((28, 256, 256), (20, 192, 192)), ((20, 30), (16, 24))],
)  # fmt: skip
def test_views(patch, crop):
    views = ConsistentViews.views(ConsistentViewsConfig(), patch)
    assert (views.region_size, views.network_size) == (patch, crop)


def test_views_are_crops_that_overlap_as_asked(make, batch_of, prepared, train):
    method = make("unet", min_overlap=0.5).eval()
    batch = batch_of()
    inputs = prepared(method, batch)
    crop = method.backbone.patch_size
    share = inputs["extent"].prod(dim=1) / torch.tensor(crop).prod()
    assert share.min() >= 0.5
    assert torch.equal(inputs["extent"][:3], inputs["extent"][3:])
    for b in range(3):
        boxes = []
        for half in (0, 1):
            start, extent = inputs["start"][b + 3 * half].tolist(), inputs["extent"][b].tolist()
            where = tuple(slice(s, s + e) for s, e in zip(start, extent, strict=True))
            boxes.append(inputs["image"][(b + 3 * half, slice(None), *where)])
        assert torch.equal(*boxes)  # the same voxels, seen in two views
    assert not torch.equal(prepared(method.train(), batch)["image"], inputs["image"])


def test_hidden_voxels_differ_between_views_and_never_leak(make, batch_of, prepared):
    for kind in ("unet", "primus"):
        method = make(kind).eval()
        inputs = prepared(method, batch_of())
        assert not torch.equal(inputs["hidden"][:3], inputs["hidden"][3:])
        output = method(inputs)
        other = method({**inputs, "image": torch.where(inputs["hidden"], 5.0, inputs["image"])})
        assert torch.allclose(output.terms["alignment"], other.terms["alignment"], atol=1e-6)


def test_reconstruction_is_that_of_the_masked_autoencoder(make, batch_of, prepared):
    from nnunet_ssl.methods.mae import MAE

    method = make("primus").eval()
    inputs = prepared(method, batch_of())
    alone = MAE.forward(method, inputs)
    output = method(inputs)
    assert torch.equal(output.terms["reconstruction"], alone.loss)
    weights = method.config
    expected = alone.loss + weights.alignment_weight * output.terms["alignment"]
    expected = expected + weights.contrast_weight * output.terms["contrast"]
    assert torch.allclose(output.loss, expected)


def test_mask_blocks_fit_into_the_smaller_views(make, batch_of, prepared):
    method = make("unet", (16, 24, 16))
    assert method.backbone.patch_size == (8, 16, 8)
    assert method.config.mask_block == (4, 8, 4)
    hidden = prepared(method, batch_of((16, 24, 16)))["hidden"].float().mean()
    assert hidden == 0.75


def test_mostly_excluded_views_are_not_aligned(make, batch_of, prepared):
    method = make("unet").eval()
    batch = batch_of()
    batch["excluded"][:] = True
    terms = method(prepared(method, batch)).terms
    assert terms["alignment"] == 0
    assert terms["contrast"] == 0
    assert terms["reconstruction"] == 0


def test_one_image_can_be_aligned_but_a_warning_says_what_is_missing(make, batch_of, prepared):
    method = make("unet")
    with pytest.warns(UserWarning, match=r"1 is too small.*recipe has 4"):
        inputs = prepared(method, batch_of(number=1))
    output = method(inputs)
    output.loss.backward()
    assert output.terms["contrast"] == 0
    assert output.terms["alignment"] > 0


def test_nothing_is_kept_from_one_step_to_the_next(make, batch_of, prepared):
    method = make("unet")
    method(prepared(method, batch_of()))
    assert method._features == []


def test_preview_marks_the_same_place_in_both_views(make, batch_of, prepared):
    method = make("unet").eval()
    inputs = prepared(method, batch_of())
    preview = method(inputs).preview
    first, second = preview["overlap_a"][0], preview["overlap_b"][0]
    assert torch.equal(inputs["image"][0][first], inputs["image"][3][second])
    assert first.sum() == inputs["extent"][0].prod()
    same = shared_voxels(inputs["start"][:3].numpy(), inputs["start"][3:].numpy(), method.backbone.patch_size)
    assert np.array_equal(same, inputs["extent"][:3].prod(dim=1))


def test_unfit_sizes_and_settings_are_refused(make):
    with pytest.raises(BackboneError, match="next valid size is"):
        make("unet", crop_size=(10, 14, 10))
    with pytest.raises(ValueError, match="cannot be taken from a region"):
        ConsistentViews.views(ConsistentViewsConfig(crop_size=(64, 64, 64)), (40, 40, 40))
    for wrong in ({"min_overlap": 0}, {"alignment_weight": 0}, {"reconstruction_weight": 0}, {"grid": 0},
                  {"predictor_dim": 1}, {"temperature": 0}, {"mask_ratio": 1.5}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            read_config(ConsistentViewsConfig, wrong, "here")


@pytest.mark.parametrize(
    ("kind", "patch", "steps", "lr", "embed"),
    [("unet", (32, 32), 140, 3e-3, 72), ("primus", (24,) * 3, 150, 1e-3, 216)],
)
def test_learns_to_paint_and_to_recognise_without_collapse(
    kind, patch, steps, lr, embed, make, smooth, train, mean_term
):
    images = smooth(6, patch, 3 if kind == "unet" else 6)
    method = make(kind, patch, embed=embed, mask_block=4, mask_ratio=0.5, alignment_weight=1.0)
    outputs = train(method, images, steps, lr)
    assert mean_term(outputs, "explained_variance") > 0.25  # the mean explains nothing
    assert mean_term(outputs, "alignment") < 0.75  # unrelated features get 1
    assert mean_term(outputs, "positive_similarity") > mean_term(outputs, "negative_similarity") + 0.25
    assert mean_term(outputs, "spread") > 0.8
    assert mean_term(outputs, "effective_rank") > 2


def test_views_of_a_single_token_are_refused(make):
    with pytest.raises(BackboneError, match=r"single mask block.*--set consistent_views.crop_size=\[16,16,16\]"):
        make("primus", (16, 16, 16))
