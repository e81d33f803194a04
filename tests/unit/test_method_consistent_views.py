"""Consistent views: which features meet, what counts, that nothing collapses."""

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from scipy.ndimage import gaussian_filter
from torch import nn

from nnunet_ssl.backbones import BackboneError, wrap_network
from nnunet_ssl.backbones.thin import keep_thin_in_float32
from nnunet_ssl.methods.consistent_views import ConsistentViews, ConsistentViewsConfig
from nnunet_ssl.views.crops import shared_voxels

PATCH = (24, 40, 24)
SMALL = {"projector_dim": 64}


def unet(channels: int = 1, ndim: int = 3, plain: bool = False) -> nn.Module:
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if ndim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    build = PlainConvUNet if plain else ResidualEncoderUNet
    options = {"norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin_kwargs": {"inplace": True}}
    return build(
        channels, 3, [8, 16, 24], conv, 3, [1, 2, 2], 1, channels, [1, 1], True, norm, nonlin=nn.LeakyReLU, **options
    )


def primus(size, channels: int = 1, embed: int = 72) -> nn.Module:
    return Primus(channels, embed, (8, 8, 8), channels, 2, embed // 72, size, init_values=0.1, scale_attn_inner=True)


def make(kind: str, patch=PATCH, channels: int = 1, embed: int = 72, **config) -> ConsistentViews:
    torch.manual_seed(0)
    config = ConsistentViewsConfig(**{**SMALL, **config})
    size = ConsistentViews.views(config, patch).network_size
    network = primus(size, channels, embed) if kind == "primus" else unet(channels, len(patch), kind == "plain")
    return ConsistentViews(wrap_network(network, size), config)


def smooth(number: int, size, sigma: float = 2, seed: int = 0) -> torch.Tensor:
    """Smooth random images [number, 1, *size] with mean 0 and deviation 1."""
    rng = np.random.default_rng(seed)
    images = np.stack([gaussian_filter(rng.normal(size=size), sigma) for _ in range(number)])[:, None]
    return torch.from_numpy((images - images.mean()) / images.std()).float()


def batch_of(patch=PATCH, channels: int = 1, number: int = 3, **config) -> dict[str, torch.Tensor]:
    size = ConsistentViews.views(ConsistentViewsConfig(**config), patch).region_size
    image = torch.randn(number, channels, *size, generator=torch.Generator().manual_seed(7))
    return {"image": image, "excluded": torch.zeros(number, 1, *size, dtype=torch.bool)}


def prepared(method: ConsistentViews, batch, seed: int = 0) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return method.prepare(batch, torch.Generator().manual_seed(seed))


def train(method: ConsistentViews, images: torch.Tensor, steps: int, lr: float) -> list:
    """Outputs of the last eight of `steps` training steps on `images`."""
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr)
    generator = torch.Generator().manual_seed(0)
    batch = {"image": images, "excluded": torch.zeros_like(images, dtype=torch.bool)}
    outputs = []
    for _ in range(steps):
        with torch.no_grad():
            inputs = method.prepare(batch, generator)
        output = method(inputs)
        optimizer.zero_grad()
        output.loss.backward()
        nn.utils.clip_grad_norm_(method.parameters(), 1)
        optimizer.step()
        outputs.append(output)
    return outputs[-8:]


def mean_term(outputs: list, name: str) -> float:
    return sum(o.terms[name].item() for o in outputs) / len(outputs)


@pytest.mark.parametrize(
    ("kind", "patch", "channels"),
    [
        ("unet", (16, 16, 16), 1),
        ("unet", (16, 24, 16), 3),
        ("plain", (40, 56, 40), 1),
        ("unet", (24, 40), 2),
        ("primus", (16, 24, 16), 1),
        ("primus", (40, 56, 40), 2),
    ],
)
def test_runs_anywhere_and_trains_what_it_says(kind, patch, channels):
    method = make(kind, patch, channels)
    output = method(prepared(method, batch_of(patch, channels)))
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
    assert all("seg_layers" in n for n, p in method.named_parameters() if not p.requires_grad)


def test_same_generator_state_same_inputs():
    method = make("unet")
    first, again, other = (prepared(method, batch_of(), seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_half_precision_stays_finite():
    method = make("unet", (16, 16, 16))
    keep_thin_in_float32(method)  # as the trainers do
    inputs = prepared(method, batch_of((16, 16, 16)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(inputs)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_heads_go_through_a_checkpoint():
    method, other = make("unet"), make("unet")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_heads(method.heads())
    assert method.heads()
    assert all(torch.equal(a, b) for a, b in zip(method.heads().values(), other.heads().values(), strict=True))


@pytest.mark.parametrize(
    ("patch", "crop"),
    [((160, 160, 160), (128, 128, 128)), ((40, 56, 40), (32, 40, 32)), ((28, 256, 256), (20, 128, 128)), ((20, 30), (16, 24))],
)  # fmt: skip
def test_views(patch, crop):
    views = ConsistentViews.views(ConsistentViewsConfig(), patch)
    assert (views.region_size, views.network_size) == (patch, crop)


def test_views_are_crops_that_overlap_as_asked():
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


def test_hidden_voxels_differ_between_views_and_never_leak():
    for kind in ("unet", "primus"):
        method = make(kind).eval()
        inputs = prepared(method, batch_of())
        assert not torch.equal(inputs["hidden"][:3], inputs["hidden"][3:])
        output = method(inputs)
        other = method({**inputs, "image": torch.where(inputs["hidden"], 5.0, inputs["image"])})
        assert torch.allclose(output.terms["alignment"], other.terms["alignment"], atol=1e-6)


def test_reconstruction_is_that_of_the_masked_autoencoder():
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


def test_mask_blocks_fit_into_the_smaller_views():
    method = make("unet", (16, 24, 16))
    assert method.backbone.patch_size == (8, 16, 8)
    assert method.config.mask_block == (4, 8, 4)
    hidden = prepared(method, batch_of((16, 24, 16)))["hidden"].float().mean()
    assert hidden == 0.75


def test_mostly_excluded_views_are_not_aligned():
    method = make("unet").eval()
    batch = batch_of()
    batch["excluded"][:] = True
    terms = method(prepared(method, batch)).terms
    assert terms["alignment"] == 0
    assert terms["contrast"] == 0
    assert terms["reconstruction"] == 0


def test_one_image_can_be_aligned_but_a_warning_says_what_is_missing():
    method = make("unet")
    with pytest.warns(UserWarning, match=r"1 is too few.*recipe has 4"):
        inputs = prepared(method, batch_of(number=1))
    output = method(inputs)
    output.loss.backward()
    assert output.terms["contrast"] == 0
    assert output.terms["alignment"] > 0


def test_nothing_is_kept_from_one_step_to_the_next():
    method = make("unet")
    method(prepared(method, batch_of()))
    assert method._features == []


def test_preview_marks_the_same_place_in_both_views():
    method = make("unet").eval()
    inputs = prepared(method, batch_of())
    preview = method(inputs).preview
    first, second = preview["overlap_a"][0], preview["overlap_b"][0]
    assert torch.equal(inputs["image"][0][first], inputs["image"][3][second])
    assert first.sum() == inputs["extent"][0].prod()
    same = shared_voxels(inputs["start"][:3], inputs["start"][3:], method.backbone.patch_size)
    assert torch.equal(same, inputs["extent"][:3].prod(dim=1))


def test_unfit_sizes_and_settings_are_refused():
    with pytest.raises(BackboneError, match="next valid size is"):
        make("unet", crop_size=(10, 14, 10))
    with pytest.raises(ValueError, match="cannot be taken from a region"):
        ConsistentViews.views(ConsistentViewsConfig(crop_size=(64, 64, 64)), (40, 40, 40))
    for wrong in ({"min_overlap": 0}, {"alignment_weight": 0}, {"reconstruction_weight": 0}, {"grid": 0},
                  {"predictor_dim": 1}, {"temperature": 0}, {"mask_ratio": 1.5}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ConsistentViewsConfig(**wrong)


@pytest.mark.parametrize(
    ("kind", "patch", "steps", "lr", "embed"),
    [("unet", (32, 32), 140, 3e-3, 72), ("primus", (24,) * 3, 150, 1e-3, 216)],
)
def test_learns_to_paint_and_to_recognise_without_collapse(kind, patch, steps, lr, embed):
    images = smooth(6, patch, 3 if kind == "unet" else 6)
    method = make(kind, patch, embed=embed, mask_block=4, mask_ratio=0.5, alignment_weight=1.0)
    outputs = train(method, images, steps, lr)
    assert mean_term(outputs, "explained_variance") > 0.25  # the mean explains nothing
    assert mean_term(outputs, "alignment") < 0.75  # unrelated features get 1
    assert mean_term(outputs, "positive_similarity") > mean_term(outputs, "negative_similarity") + 0.25
    assert mean_term(outputs, "spread") > 0.8
    assert mean_term(outputs, "effective_rank") > 2
