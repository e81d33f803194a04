"""SimCLR: which crops make pairs, what is compared, that it learns."""

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from scipy.ndimage import gaussian_filter
from torch import nn

from nnunet_ssl.backbones import BackboneError, wrap_network
from nnunet_ssl.backbones.thin import keep_thin_in_float32
from nnunet_ssl.methods.simclr import SimCLR, SimCLRConfig
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


def make(kind: str, patch=PATCH, channels: int = 1, embed: int = 72, **config) -> SimCLR:
    torch.manual_seed(0)
    config = SimCLRConfig(**{**SMALL, **config})
    size = SimCLR.views(config, patch).network_size
    network = primus(size, channels, embed) if kind == "primus" else unet(channels, len(patch), kind == "plain")
    return SimCLR(wrap_network(network, size), config)


def smooth(number: int, size, sigma: float = 2, seed: int = 0) -> torch.Tensor:
    """Smooth random images [number, 1, *size] with mean 0 and deviation 1."""
    rng = np.random.default_rng(seed)
    images = np.stack([gaussian_filter(rng.normal(size=size), sigma) for _ in range(number)])[:, None]
    return torch.from_numpy((images - images.mean()) / images.std()).float()


def batch_of(patch=PATCH, channels: int = 1, number: int = 3, **config) -> dict[str, torch.Tensor]:
    size = SimCLR.views(SimCLRConfig(**config), patch).region_size
    image = torch.randn(number, channels, *size, generator=torch.Generator().manual_seed(7))
    return {"image": image, "excluded": torch.zeros(number, 1, *size, dtype=torch.bool)}


def prepared(method: SimCLR, batch, seed: int = 0) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return method.prepare(batch, torch.Generator().manual_seed(seed))


def train(method: SimCLR, images: torch.Tensor, steps: int, lr: float) -> list:
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
    frozen = {n for n, p in method.named_parameters() if not p.requires_grad}
    assert frozen
    assert all("decoder" in n or "up_projection" in n for n in frozen)


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
    ("patch", "region", "crop"),
    [
        ((160, 160, 160), (192, 192, 64), (64, 64, 64)),
        ((40, 56, 40), (40, 56, 40), (24, 40, 24)),
        ((28, 256, 256), (28, 256, 256), (20, 128, 128)),
        ((64, 64, 64), (64, 64, 64), (32, 32, 32)),
        ((512, 448), (512, 448), (256, 320)),
    ],
)
def test_views(patch, region, crop):
    views = SimCLR.views(SimCLRConfig(), patch)
    assert (views.region_size, views.network_size) == (region, crop)
    assert not views.mirror  # crops are mirrored one by one
    assert not views.rotate_and_scale


def test_crops_overlap_as_asked_and_validation_sees_them_unchanged():
    method = make("unet", min_overlap=0.6, pairs_per_image=3).eval()
    batch = batch_of()
    inputs = prepared(method, batch)
    corners, crop = inputs["corners"], method.backbone.patch_size
    assert corners.shape == (3, 6, 3)
    share = shared_voxels(corners[:, :3], corners[:, 3:], crop) / torch.tensor(crop).prod()
    assert share.min() >= 0.6
    for b in range(3):
        for k in range(6):
            where = tuple(slice(c, c + s) for c, s in zip(corners[b, k].tolist(), crop, strict=True))
            assert torch.equal(inputs["views"][k * 3 + b], batch["image"][(b, slice(None), *where)])
    changed = prepared(method.train(), batch)
    assert not torch.equal(changed["views"], inputs["views"])
    assert torch.equal(changed["corners"], corners)


def test_pairs_of_mostly_excluded_crops_do_not_count():
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


def test_preview_shows_both_crops_of_the_first_pair():
    method = make("unet").eval()
    inputs = prepared(method, batch_of())
    preview = method(inputs).preview
    voxels = torch.tensor(method.backbone.patch_size).prod()
    labels = preview["crops"][0]
    shared = shared_voxels(inputs["corners"][0, 0], inputs["corners"][0, 2], method.backbone.patch_size)
    assert ((labels == 1) | (labels == 3)).sum() == voxels
    assert ((labels == 2) | (labels == 3)).sum() == voxels
    assert (labels == 3).sum() == shared == preview["overlap_of_reference"][0].sum()


def test_a_single_image_has_no_negatives():
    method = make("unet")
    with pytest.raises(ValueError, match="batch of one"):
        prepared(method, batch_of(number=1))
    output = method.eval()(prepared(method.eval(), batch_of(number=1)))  # the picture of a single case
    assert output.loss == 0


def test_few_images_warn_with_the_number_of_the_recipe():
    with pytest.warns(UserWarning, match=r"3 are too few.*recipe has 32"):
        prepared(make("unet"), batch_of())


def test_unfit_sizes_and_settings_are_refused():
    with pytest.raises(BackboneError, match=r"not a multiple .* next valid size is \(12, 16, 12\)"):
        make("unet", crop_size=(10, 14, 10))
    with pytest.raises(ValueError, match="leave a single voxel"):
        make("unet", (8, 8, 8), crop_size=(4, 4, 4))
    with pytest.raises(ValueError, match="cannot be taken from a region"):
        SimCLR.views(SimCLRConfig(crop_size=(64, 64)), (40, 40))
    for wrong in ({"min_overlap": 0}, {"min_overlap": 0.8, "max_overlap": 0.5}, {"temperature": 0},
                  {"pairs_per_image": 0}, {"projector_dim": 1}, {"augmentation": -1}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SimCLRConfig(**wrong)


@pytest.mark.parametrize(
    ("kind", "patch", "steps", "lr", "embed"), [("unet", (24, 24), 120, 2e-3, 72), ("primus", (24,) * 3, 50, 1e-3, 216)]
)
def test_learns_to_tell_images_apart(kind, patch, steps, lr, embed):
    images = smooth(8, patch, 3)
    method = make(kind, patch, embed=embed, pairs_per_image=1 if kind == "primus" else 2)
    outputs = train(method, images, steps, lr)
    uniform = np.log(1 + 2 * method.config.pairs_per_image * 7)  # all similarities equal
    assert sum(o.loss.item() for o in outputs) / 8 < uniform - 0.5
    assert mean_term(outputs, "positive_similarity") > mean_term(outputs, "negative_similarity") + 0.4
    assert mean_term(outputs, "spread") > 0.5
    assert mean_term(outputs, "effective_rank") > 1.5
