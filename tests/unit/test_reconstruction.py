"""Reconstruction losses and per-patch normalisation against loop-written twins."""

import itertools

import pytest
import torch

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.losses.reconstruction import (
    MaskedReconstruction,
    explained_variance,
    masked_error,
    patch_statistics,
)
from nnunet_ssl.methods.mae import MAEConfig
from nnunet_ssl.settings.blocks import read_config

SHAPES = [(2, 1, 4, 5, 3), (1, 3, 6, 7), (2, 2, 8, 4, 6)]


def random_case(shape):
    generator = torch.Generator().manual_seed(sum(shape))
    prediction, target = (torch.randn(shape, generator=generator) for _ in range(2))
    hidden, excluded = (torch.rand(shape[0], 1, *shape[2:], generator=generator) < p for p in (0.7, 0.2))
    return prediction, target, hidden, excluded


def slow_error(prediction, target, counted, loss):
    errors = []
    for place in itertools.product(*(range(s) for s in prediction.shape)):
        if counted[(place[0], 0, *place[2:])]:
            difference = prediction[place].item() - target[place].item()
            errors.append(difference**2 if loss == "l2" else abs(difference))
    return sum(errors) / len(errors)


def slow_statistics(image, excluded, block):
    """Collect the voxels of each block in a list."""
    mean, deviation = torch.zeros_like(image), torch.ones_like(image)
    for b, c in itertools.product(range(image.shape[0]), range(image.shape[1])):
        members: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for place in itertools.product(*(range(s) for s in image.shape[2:])):
            members.setdefault(tuple(p // w for p, w in zip(place, block, strict=True)), []).append(place)
        for places in members.values():
            values = [image[(b, c, *p)].item() for p in places if not excluded[(b, 0, *p)]]
            average = sum(values) / len(values) if values else 0.0
            variance = sum((v - average) ** 2 for v in values) / max(len(values) - 1, 1)
            for p in places:
                mean[(b, c, *p)], deviation[(b, c, *p)] = average, (variance + 1e-6) ** 0.5
    return mean, deviation


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_masked_error_against_loops(shape, loss):
    prediction, target, hidden, _ = random_case(shape)
    expected = slow_error(prediction, target, hidden, loss)
    assert masked_error(prediction, target, hidden, loss).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("shape", "block"), [(SHAPES[0], (2, 2, 2)), (SHAPES[1], (4, 3)), (SHAPES[2], (4, 4, 3))])
def test_patch_statistics_against_loops(shape, block):
    """Blocks that do not divide the patch end in smaller ones, and one block is wholly excluded."""
    _, image, _, excluded = random_case(shape)
    excluded[(0, 0, *(slice(b) for b in block))] = True
    for fast, slow in zip(
        patch_statistics(image, excluded, block), slow_statistics(image, excluded, block), strict=True
    ):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("loss_on", ["hidden", "everywhere"])
@pytest.mark.parametrize("normalise", [False, True])
def test_masked_reconstruction_against_its_parts(loss, loss_on, normalise):
    prediction, image, hidden, excluded = random_case(SHAPES[2])
    criterion = MaskedReconstruction(loss, loss_on, standardise_in=4 if normalise else None)
    inputs = {"image": image, "hidden": hidden, "excluded": excluded}
    output = criterion.score(prediction, image * ~hidden, inputs)
    target, painted = image, prediction
    if normalise:
        mean, deviation = slow_statistics(image, excluded, (4, 4, 4))
        target, painted = (image - mean) / deviation, prediction * deviation + mean
    counted = ~excluded if loss_on == "everywhere" else hidden & ~excluded
    assert output.loss.item() == pytest.approx(slow_error(prediction, target, counted, loss), rel=1e-4)
    torch.testing.assert_close(output.preview["reconstruction"], painted, rtol=1e-4, atol=1e-4)
    explained = explained_variance(prediction, target, hidden, excluded)
    torch.testing.assert_close(output.terms["explained_variance"], explained, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wrong", [{"loss": "l3"}, {"loss": "l1", "loss_on": "visible"}])
def test_unknown_losses_are_refused(wrong):
    with pytest.raises(SettingsError, match=r'loss(_on)? is "'):
        read_config(MAEConfig, wrong, "here")
