"""The table of docs/methods/README.md: every method on every kind of plans, or an error that says what to do."""

from __future__ import annotations

import pytest
import torch

from nnunet_ssl.errors import BackboneError
from nnunet_ssl.methods import get_method, method_names

OWN = [m for m in method_names() if get_method(m).__module__.startswith("nnunet_ssl.")]
PLANS = [  # backbone, patch, channels, images
    ("unet", (16, 16, 16), 1, 1),
    ("unet", (16, 24, 32), 3, 2),
    ("plain", (24, 40), 2, 2),
    ("primus", (16, 24, 32), 2, 2),
    ("primus", (24, 24, 24), 1, 1),
]
NEEDS_TWO = ("simclr", "swin_unetr")


@pytest.fixture(params=OWN)
def method_class(request):
    return get_method(request.param)


@pytest.mark.parametrize(("kind", "size", "channels", "images"), PLANS)
@pytest.mark.filterwarnings("ignore:.*is too small")
def test_one_step_on_any_plans(kind, size, channels, images, method_class, make, batch_of, prepared):
    if kind not in ("unet", "plain") and kind not in method_class.backbones:
        with pytest.raises(ValueError, match="works on unet networks, not on primus"):
            make(kind, size, channels)
        return
    method, batch = make(kind, size, channels), batch_of(size, channels, images)
    if images == 1 and method_class.name in NEEDS_TWO:
        with pytest.raises(ValueError, match=r"got a batch of one.*--batch-size \d+"):
            prepared(method, batch)
        return
    output = method(prepared(method, batch))
    output.loss.backward()
    assert output.loss.isfinite()
    moved = {n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert any(n.startswith("backbone.network") for n in moved)
    assert all(len(image) == images for image in output.preview.values())


def test_patch_that_does_not_fit_says_what_to_type(method_class, make):
    given = {"crop_size": (10, 12, 12)} if method_class.crop_setting else {}
    patch = (16, 24, 24) if given else (10, 12, 12)
    flag = rf"--set {method_class.crop_setting}=\[12,12,12\]" if given else "--patch-size 12 12 12"
    with pytest.raises(BackboneError, match=rf"next valid size is \(12, 12, 12\): {flag}"):
        make("unet", patch, **given)


@pytest.mark.filterwarnings("ignore:.*is too small")
def test_same_generator_state_same_inputs(method_class, make, batch_of, prepared):
    method = make("unet")
    first, again, other = (prepared(method, batch_of(), seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)
