"""SimCLR: which crops make pairs, what is compared, that it learns."""

import numpy as np
import pytest
import torch

from nnunet_ssl.errors import BackboneError
from nnunet_ssl.methods.simclr import SimCLR, SimCLRConfig
from nnunet_ssl.settings.blocks import read_config
from nnunet_ssl.views.crops import shared_voxels

METHOD = SimCLR


@pytest.mark.parametrize(
    ("patch", "region", "crop"),
    [
        ((160, 160, 160), (192, 192, 64), (64, 64, 64)),
        ((40, 56, 40), (40, 56, 40), (24, 40, 24)),
        ((28, 256, 256), (28, 256, 256), (20, 192, 192)),
        ((64, 64, 64), (64, 64, 64), (32, 32, 32)),
        ((512, 448), (512, 448), (384, 320)),
    ],
)
def test_views(patch, region, crop):
    views = SimCLR.views(SimCLRConfig(), patch)
    assert (views.region_size, views.network_size) == (region, crop)
    assert not views.mirror  # crops are mirrored one by one
    assert not views.rotate_and_scale


def test_crops_overlap_as_asked_and_validation_sees_them_unchanged(make, batch_of, prepared, train):
    method = make("unet", min_overlap=0.6, pairs_per_image=3).eval()
    batch = batch_of()
    inputs = prepared(method, batch)
    corners, crop = inputs["corners"], method.backbone.patch_size
    assert corners.shape == (3, 6, 3)
    share = shared_voxels(corners[:, :3].numpy(), corners[:, 3:].numpy(), crop) / np.prod(crop)
    assert share.min() >= 0.6
    for b in range(3):
        for k in range(6):
            where = tuple(slice(c, c + s) for c, s in zip(corners[b, k].tolist(), crop, strict=True))
            assert torch.equal(inputs["views"][k * 3 + b], batch["image"][(b, slice(None), *where)])
    changed = prepared(method.train(), batch)
    assert not torch.equal(changed["views"], inputs["views"])
    assert torch.equal(changed["corners"], corners)


def test_pairs_of_mostly_excluded_crops_do_not_count(make, batch_of, prepared):
    method = make("unet").eval()
    batch = batch_of()
    batch["excluded"][1] = True
    output = method(prepared(method, batch))
    kept = {k: v[[0, 2]] for k, v in batch.items()}
    inputs = prepared(method, batch)
    rows = torch.tensor([0, 2])
    views = torch.cat([inputs["views"][k * 3 + rows] for k in range(4)])
    rest = method({**inputs, "region": kept["image"], "views": views, "usable": torch.ones(8, dtype=torch.bool)})
    assert torch.allclose(output.loss, rest.loss, atol=1e-5)


def test_preview_shows_both_crops_of_the_first_pair(make, batch_of, prepared):
    method = make("unet").eval()
    inputs = prepared(method, batch_of())
    preview = method(inputs).preview
    voxels = torch.tensor(method.backbone.patch_size).prod()
    first, second = preview["reference_crop"][0], preview["partner_crop"][0]
    shared = shared_voxels(*inputs["corners"][0, [0, 2]].numpy(), method.backbone.patch_size)
    assert first.sum() == second.sum() == voxels
    assert (first & second).sum() == shared == preview["overlap_of_reference"][0].sum()


def test_a_single_image_has_no_negatives(make, batch_of, prepared):
    method = make("unet")
    with pytest.raises(ValueError, match="batch of one"):
        prepared(method, batch_of(number=1))
    output = method.eval()(prepared(method.eval(), batch_of(number=1)))  # the picture of a single case
    assert output.loss == 0


def test_unfit_sizes_and_settings_are_refused(make):
    with pytest.raises(BackboneError, match=r"not a multiple .* next valid size is \(12, 16, 12\)"):
        make("unet", crop_size=(10, 14, 10))
    with pytest.raises(ValueError, match="leave a single voxel"):
        make("unet", (8, 8, 8), crop_size=(4, 4, 4))
    with pytest.warns(UserWarning, match=r"little for this network: \(1, 2, 1\) positions.*crop_size=\[8,8,8\]"):
        make("unet", (16, 24, 16), crop_size=(4, 8, 4))
    with pytest.raises(ValueError, match="cannot be taken from a region"):
        SimCLR.views(SimCLRConfig(crop_size=(64, 64)), (40, 40))
    for wrong in ({"min_overlap": 0}, {"min_overlap": 0.8, "max_overlap": 0.5}, {"temperature": 0},
                  {"pairs_per_image": 0}, {"projector_dim": 1}, {"augmentation": -1}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            read_config(SimCLRConfig, wrong, "here")


@pytest.mark.parametrize(
    ("kind", "patch", "steps", "lr", "embed"), [("unet", (24, 24), 120, 2e-3, 72), ("primus", (24,) * 3, 50, 1e-3, 216)]
)
def test_learns_to_tell_images_apart(kind, patch, steps, lr, embed, make, smooth, train, mean_term):
    images = smooth(8, patch, 3)
    method = make(kind, patch, embed=embed, pairs_per_image=1 if kind == "primus" else 2)
    outputs = train(method, images, steps, lr)
    uniform = np.log(1 + 2 * method.config.pairs_per_image * 7)  # all similarities equal
    assert sum(o.loss.item() for o in outputs) / 8 < uniform - 0.5
    assert mean_term(outputs, "positive_similarity") > mean_term(outputs, "negative_similarity") + 0.4
    assert mean_term(outputs, "spread") > 0.5
    assert mean_term(outputs, "effective_rank") > 1.5
