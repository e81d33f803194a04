"""What SimCLR, VoCo, SwinUNETR's tasks, consistent views and self-distillation owe alike."""

import pytest
import torch

from nnunet_ssl.backbones.bfloat16_conv3d import avoid_bfloat16_conv3d_bug
from nnunet_ssl.methods.consistent_views import ConsistentViews
from nnunet_ssl.methods.self_distillation import SelfDistillation
from nnunet_ssl.methods.simclr import SimCLR
from nnunet_ssl.methods.swin_unetr import SwinUNETR
from nnunet_ssl.methods.voco import VoCo


@pytest.fixture(params=[SimCLR, VoCo, SwinUNETR, ConsistentViews, SelfDistillation], ids=lambda m: m.name)
def method_class(request):
    return request.param


@pytest.mark.parametrize(
    ("kind", "size", "channels"),
    [
        ("unet", (16, 16, 16), 1),
        ("unet", (16, 24, 16), 3),
        ("plain", (40, 56, 40), 1),
        ("unet", (24, 40), 2),
        ("primus", (16, 24, 16), 1),
        ("primus", (40, 56, 40), 2),
    ],
)
def test_runs_anywhere_and_trains_what_it_says(kind, size, channels, method_class, make, batch_of, prepared):
    method = make(kind, size, channels)
    output = method(prepared(method, batch_of(size, channels)))
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.loss.dtype == torch.float32
    assert all(not value.requires_grad and value.ndim == 0 for value in output.terms.values())
    assert all(not image.requires_grad and len(image) == 3 for image in output.preview.values())
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.ndim < 2 or parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name
    frozen = {n for n, p in method.named_parameters() if not p.requires_grad and not n.startswith("teacher")}
    if method_class in (ConsistentViews, SelfDistillation):  # whose decoders paint
        assert all("seg_layers" in n for n in frozen)
    else:
        assert frozen
        assert all("decoder" in n or "up_projection" in n for n in frozen)


def test_half_precision_stays_finite(make, batch_of, prepared):
    method = make("unet", (16, 16, 16))
    avoid_bfloat16_conv3d_bug(method)  # as the trainers do
    inputs = prepared(method, batch_of((16, 16, 16)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(inputs)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_heads_go_through_a_checkpoint(make):
    method, other = make("unet"), make("unet")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_heads(method.heads())
    assert method.heads()
    assert all(torch.equal(a, b) for a, b in zip(method.heads().values(), other.heads().values(), strict=True))


def test_small_batches_warn_with_the_number_of_the_recipe(method_class, make, batch_of, prepared):
    recipe = {SimCLR: 32, VoCo: 8, SwinUNETR: 8, ConsistentViews: 4, SelfDistillation: 8}[method_class]
    number = 2 if method_class in (SimCLR, SwinUNETR) else 1
    with pytest.warns(UserWarning, match=rf"{number} is too small.*recipe has {recipe}.*--batch-size {recipe}"):
        prepared(make("unet"), batch_of(number=number))


def test_size_that_does_not_fit_says_what_to_type(method_class, make):
    if method_class is SwinUNETR:  # sees whole patches
        with pytest.raises(ValueError, match=r"--patch-size 16 24 16, the one below it \(16, 20, 16\): --patch-size"):
            make("unet", (16, 22, 16))
    else:
        flag = rf"--set {method_class.name}.crop_size=\[12,16,12\]"
        with pytest.raises(ValueError, match=rf"{flag}, the one below it \(8, 12, 8\)"):
            make("unet", crop_size=(10, 14, 10))
