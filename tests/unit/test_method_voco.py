"""VoCo: the grid, the overlaps, what counts, that it learns."""

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from scipy.ndimage import gaussian_filter
from torch import nn

from nnunet_ssl.backbones import BackboneError, wrap_network
from nnunet_ssl.backbones.thin import keep_thin_in_float32
from nnunet_ssl.methods.voco import VoCo, VoCoConfig

PATCH = (32, 48, 16)
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


def make(kind: str, patch=PATCH, channels: int = 1, embed: int = 72, **config) -> VoCo:
    torch.manual_seed(0)
    config = VoCoConfig(**{**SMALL, **config})
    size = VoCo.views(config, patch).network_size
    network = primus(size, channels, embed) if kind == "primus" else unet(channels, len(patch), kind == "plain")
    return VoCo(wrap_network(network, size), config)


def smooth(number: int, size, sigma: float = 2, seed: int = 0) -> torch.Tensor:
    """Smooth random images [number, 1, *size] with mean 0 and deviation 1."""
    rng = np.random.default_rng(seed)
    images = np.stack([gaussian_filter(rng.normal(size=size), sigma) for _ in range(number)])[:, None]
    return torch.from_numpy((images - images.mean()) / images.std()).float()


def batch_of(patch=PATCH, channels: int = 1, number: int = 3, **config) -> dict[str, torch.Tensor]:
    size = VoCo.views(VoCoConfig(**config), patch).region_size
    image = torch.randn(number, channels, *size, generator=torch.Generator().manual_seed(7))
    return {"image": image, "excluded": torch.zeros(number, 1, *size, dtype=torch.bool)}


def prepared(method: VoCo, batch, seed: int = 0) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return method.prepare(batch, torch.Generator().manual_seed(seed))


def train(method: VoCo, images: torch.Tensor, steps: int, lr: float) -> list:
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


def test_crops_and_overlaps_against_loops():
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
    crops = inputs["crops"].view(3, len(starts) + 5, 1, *crop)
    for b in range(3):
        corners = starts + [tuple(c.tolist()) for c in inputs["target_corners"][b]]
        for k, corner in enumerate(corners):
            where = tuple(slice(c, c + s) for c, s in zip(corner, crop, strict=True))
            assert torch.equal(crops[b, k], batch["image"][(b, slice(None), *where)])
        for t, corner in enumerate(corners[len(starts) :]):
            for k, base in enumerate(starts):
                share = 1.0
                for c, s, width in zip(corner, base, crop, strict=True):
                    share *= max(width - abs(c - s), 0) / width
                assert inputs["overlap"][b, t, k].item() == pytest.approx(share, abs=1e-6)
    assert torch.allclose(inputs["overlap"].sum(dim=2), torch.ones(3, 5))


def test_one_image_is_enough():
    method = make("unet")
    output = method(prepared(method, batch_of(number=1)))
    output.loss.backward()
    assert output.loss > 0


def test_a_mostly_excluded_image_does_not_count():
    method = make("unet").eval()
    batch = batch_of()
    batch["excluded"][1] = True
    inputs = prepared(method, batch)
    rows = torch.tensor([0, 2])
    crops = inputs["crops"].view(3, -1, *inputs["crops"].shape[1:])[rows].flatten(0, 1)
    rest = {k: v[rows] for k, v in inputs.items() if k != "crops"} | {"crops": crops}
    assert torch.allclose(method(inputs).loss, method(rest).loss, atol=1e-5)


def test_preview_paints_the_overlap_into_the_grid():
    method = make("unet").eval()
    inputs = prepared(method, batch_of())
    preview = method(inputs).preview
    assert preview["base_crops"].unique().tolist() == list(range(1, inputs["overlap"].shape[2] + 1))
    voxels = preview["target_crop"][0].sum().item()
    for k, share in enumerate(inputs["overlap"][0, 0].tolist(), start=1):
        cell = preview["base_crops"][0] == k
        assert (preview["target_crop"][0] & cell).sum().item() == pytest.approx(share * voxels)
        low, high = preview["region"][0].min().item(), preview["region"][0].max().item()
        assert preview["overlap"][0][cell].unique().item() == pytest.approx(low + share * (high - low), abs=1e-5)


def test_unfit_sizes_and_settings_are_refused():
    with pytest.raises(BackboneError, match="not a multiple"):
        make("unet", crop_size=(10, 14, 10))
    with pytest.raises(ValueError, match="nothing to tell apart"):
        VoCo.views(VoCoConfig(crop_size=(40, 40, 40)), (40, 40, 40))
    with pytest.raises(ValueError, match=r"grid .* has 2 axes"):
        VoCo.views(VoCoConfig(grid=(2, 2)), (40, 40, 40))
    for wrong in ({"target_crops": 0}, {"grid": (1, 1, 1)}, {"apart_weight": -1}, {"embedding_dim": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VoCoConfig(**wrong)


def best_constant(overlap: torch.Tensor) -> float:
    """Loss of the best similarity that is the same everywhere, with bases that are all different."""
    values = torch.linspace(0, 0.999, 200).view(-1, 1, 1, 1)
    near = (overlap * -torch.log(1 - (overlap - values).abs() + 1e-6)).sum(dim=(1, 2, 3)) / overlap.sum()
    return (near + values.flatten().square()).min().item()


@pytest.mark.parametrize(
    ("kind", "patch", "config"), [("unet", (32, 32), {}), ("primus", (32, 32, 8), {"grid": (2, 2, 1)})]
)
def test_learns_where_crops_lie(kind, patch, config):
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
