"""Intensity changes against scipy, batchgenerators and loops; the whole chain equals batchgenerators' in its moments."""

import numpy as np
import pytest
import torch
from batchgenerators.augmentations.color_augmentations import augment_contrast, augment_gamma
from batchgenerators.augmentations.resample_augmentations import augment_linear_downsampling_scipy
from batchgenerators.transforms.abstract_transforms import Compose
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
from scipy.ndimage import gaussian_filter

from nnunet_ssl.views import intensity
from nnunet_ssl.views.contrastive import augment_crops
from nnunet_ssl.views.intensity import augment_intensity, blur, change_contrast, change_gamma, lower_resolution

SIZES = [(10, 12, 7), (16, 11), (3, 9, 2)]


def images(size, number: int = 4) -> torch.Tensor:
    return torch.randn(number, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES)
def test_blur_is_scipys(size):
    x, sigma = images(size), np.array([0.5, 0.63, 0.87, 1.0])
    slow = np.stack([gaussian_filter(image, s) for image, s in zip(x.numpy(), sigma.tolist(), strict=True)])
    assert torch.allclose(blur(x, sigma), torch.from_numpy(slow), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_contrast_is_batchgenerators(size):
    x, factor = images(size), np.array([0.75, 0.9, 1.1, 1.25])
    slow = [augment_contrast(x[i : i + 1].numpy().copy(), lambda i=i: factor[i].item()) for i in range(4)]
    assert torch.allclose(change_contrast(x, factor), torch.from_numpy(np.concatenate(slow)), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("invert", [False, True])
def test_gamma_is_batchgenerators(size, invert):
    x = images(size, 3)
    gamma = np.array([1.0, 1.2, 1.5])  # a range of one value >= 1 is drawn as it is
    slow = [
        augment_gamma(x[i : i + 1].numpy().copy(), (g, g), invert, per_channel=True, retain_stats=True)
        for i, g in enumerate(gamma.tolist())
    ]
    assert torch.allclose(change_gamma(x, gamma, invert), torch.from_numpy(np.concatenate(slow)), atol=1e-4)


def test_gamma_below_one_against_its_formula():
    x = images((5, 6))[:1]
    scaled = (x - x.min()) / (x.max() - x.min())
    slow = scaled**0.7
    slow = (slow - slow.mean()) / slow.std(correction=0) * x.std(correction=0) + x.mean()
    assert torch.allclose(change_gamma(x, np.array([0.7]), False), slow, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 12, 20), (24, 18)])
def test_lower_resolution_is_close_to_batchgenerators(size):
    x = torch.stack([torch.from_numpy(gaussian_filter(i, 1.5)) for i in images(size).numpy()])
    x = x / x.std()
    zoom = np.array([0.5, 0.66, 0.8, 1.0])
    ours = lower_resolution(x, zoom)
    for i, z in enumerate(zoom.tolist()):
        slow = augment_linear_downsampling_scipy(
            x[i : i + 1].numpy().copy(), (z, z), p_per_channel=1, order_downsample=0, order_upsample=3
        )
        difference = (ours[i] - torch.from_numpy(slow[0])).square().mean().sqrt()
        assert difference < 0.08, z  # cubic convolution against cubic splines
        change = (x[i] - torch.from_numpy(slow[0])).square().mean().sqrt()
        assert z == 1 or difference < 0.35 * change
    assert torch.allclose(ours[3], x[3], atol=1e-5)


def test_a_constant_image_stays_finite_and_constant():
    x = torch.full((2, 6, 6, 6), 3.0)
    for changed in (
        blur(x, np.array([0.5, 1.0])),
        change_contrast(x, np.array([0.8, 1.2])),
        lower_resolution(x, np.array([0.5, 0.9])),
        change_gamma(x, np.array([0.7, 1.5]), True),
    ):
        assert torch.allclose(changed, x, atol=1e-4)


def statistics(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Per image: mean, deviation, skewness, roughness, and how much it changed: their means and deviations."""
    flat = after.reshape(len(after), -1)
    centred = flat - flat.mean(axis=1, keepdims=True)
    std = centred.std(axis=1)
    rough = np.abs(np.diff(after, axis=-1)).reshape(len(after), -1).mean(axis=1)
    changed = np.abs(after - before).reshape(len(after), -1).mean(axis=1)
    each = np.stack([flat.mean(axis=1), std, (centred**3).mean(axis=1) / std**3, rough, changed, changed > 1e-6])
    return np.stack([each.mean(axis=1), each.std(axis=1)])


def test_the_chain_equals_batchgenerators_in_distribution():
    number, size = 3000, (8, 8, 8)
    rng = np.random.default_rng(0)
    base = gaussian_filter(rng.normal(size=(number, 2, *size)), (0, 0, 1, 1, 1))
    base = (base / base.std() + 0.5).astype(np.float32)
    chain = Compose(
        [
            GaussianNoiseTransform(p_per_sample=0.1),
            GaussianBlurTransform((0.5, 1.0), different_sigma_per_channel=True, p_per_sample=0.2, p_per_channel=0.5),
            BrightnessMultiplicativeTransform(multiplier_range=(0.75, 1.25), p_per_sample=0.15),
            ContrastAugmentationTransform(p_per_sample=0.15),
            SimulateLowResolutionTransform((0.5, 1), True, 0.5, None, 0, 3, p_per_sample=0.1),
            GammaTransform((0.7, 1.5), True, True, retain_stats=True, p_per_sample=0.1),
            GammaTransform((0.7, 1.5), False, True, retain_stats=True, p_per_sample=0.3),
        ]
    )
    np.random.seed(1)
    theirs = chain(data=base.copy())["data"]
    ours = augment_intensity(torch.from_numpy(base), torch.Generator().manual_seed(1)).numpy()
    (their_mean, their_std), (our_mean, our_std) = (
        statistics(base.reshape(-1, *size), x.reshape(-1, *size)) for x in (theirs, ours)
    )
    # Both are means over 6000 images: their difference has this deviation if the distributions are equal.
    error = np.sqrt((their_std**2 + our_std**2) / (2 * number) * 2)
    assert (np.abs(their_mean - our_mean) < 4 * error).all(), (their_mean, our_mean, error)
    assert np.allclose(their_std, our_std, rtol=0.1)


@pytest.mark.parametrize("low_resolution", [0.1, 0.25])
def test_every_change_has_its_probability_and_its_range(monkeypatch, low_resolution):
    number, calls = 20_000, {}

    def record(name):
        def change(rows, parameter, invert=None):
            calls.setdefault(name if invert is None else f"{name} {invert}", []).append(parameter)
            return rows + 1000

        monkeypatch.setattr(intensity, name, change)

    for name in ("blur", "change_contrast", "lower_resolution", "change_gamma"):
        record(name)
    out = augment_intensity(
        torch.ones(number, 1, 2, 2), torch.Generator().manual_seed(0), low_resolution=low_resolution
    )
    expected = {
        "blur": (0.1, 0.5, 0.75, 1.0),  # share of channels, least, median and most of the parameter
        "change_contrast": (0.15, 0.75, 1.0, 1.25),
        "lower_resolution": (low_resolution / 2, 0.5, 0.75, 1.0),
        "change_gamma True": (0.1, 0.7, 1.0, 1.5),
        "change_gamma False": (0.3, 0.7, 1.0, 1.5),
    }
    assert calls.keys() == expected.keys()
    for name, (share, least, median, most) in expected.items():
        parameter = np.concatenate(calls[name])
        assert len(parameter) / number == pytest.approx(share, abs=5 * (share * (1 - share) / number) ** 0.5), name
        found = [parameter.min(), np.median(parameter), parameter.max()]
        assert found == pytest.approx([least, median, most], abs=0.02), name
    left = out.flatten(1).mean(dim=1)
    untouched = left < 10  # by the four above: noise and brightness remain
    assert (left[untouched] != 1).float().mean().item() == pytest.approx(1 - 0.9 * 0.85, abs=0.02)


def test_strength_zero_changes_nothing_and_the_input_never_changes():
    x = torch.randn(6, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    assert torch.equal(augment_intensity(x, torch.Generator().manual_seed(0), 0.0), x)
    assert torch.equal(augment_crops(x, torch.Generator().manual_seed(0), 0.0), x)
    assert not torch.equal(augment_intensity(x, torch.Generator().manual_seed(0), 3.0), x)
    assert torch.equal(x, before)


def test_same_generator_state_same_augmentation():
    x = torch.randn(8, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    first, again, other = (augment_crops(x, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_images_changed_at_once_are_those_changed_one_by_one(monkeypatch):
    """A GPU changes all images that get a change at once; here the changes are told that they run on one."""
    x = torch.randn(24, 2, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    one_by_one = augment_intensity(x, torch.Generator().manual_seed(1), 2.0)
    numbers = []

    def at_once(flat, rows, change, parameter):
        numbers.append(len(rows))
        if len(rows):
            index = torch.from_numpy(rows)
            flat.index_copy_(0, index, change(flat.index_select(0, index), parameter[rows]))

    monkeypatch.setattr(intensity, "change_rows", at_once)
    assert torch.allclose(augment_intensity(x, torch.Generator().manual_seed(1), 2.0), one_by_one, atol=1e-5)
    assert sum(n > 1 for n in numbers) > 4
