"""NT-Xent, VoCo's loss and the alignment against loop-written twins."""

import math
import warnings

import pytest
import torch

from nnunet_ssl.heads.projector import BatchStandardise, LayerStandardise
from nnunet_ssl.losses.alignment_loss import alignment_loss
from nnunet_ssl.losses.gather import check_images, warn_if_few
from nnunet_ssl.losses.nt_xent import nt_xent
from nnunet_ssl.losses.voco_loss import voco_loss


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a, b) -> float:
    return (sum(x * y for x, y in zip(a, b, strict=True)) / (a.norm() * b.norm())).item()


def slow_nt_xent(first, second, images, usable, temperature) -> float:
    """Every embedding asks for its partner, one after the other."""
    total, asked = 0.0, 0
    crops = [*zip(first, images, usable, strict=True), *zip(second, images, usable, strict=True)]
    number = len(first)
    for i, (anchor, image, fine) in enumerate(crops):
        if not fine:
            continue
        positive = math.exp(cosine(anchor, crops[(i + number) % (2 * number)][0]) / temperature)
        negatives = sum(
            math.exp(cosine(anchor, other) / temperature)
            for other, other_image, other_fine in crops
            if other_image != image and other_fine
        )
        total += -math.log(positive / (positive + negatives))
        asked += 1
    return total / max(asked, 1)


@pytest.mark.parametrize(("number", "width", "images"), [(4, 5, [0, 1, 2, 3]), (6, 3, [0, 1, 2, 0, 1, 2]), (1, 8, [0])])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("all_usable", [True, False])
def test_nt_xent_against_loops(number, width, images, temperature, all_usable):
    first, second, images = randn(number, width), randn(number, width, seed=1), torch.tensor(images)
    usable = torch.ones(number, dtype=torch.bool) if all_usable else torch.arange(number) % 3 != 1
    result = nt_xent(first, second, images, usable, temperature, together=False)
    slow = slow_nt_xent(first, second, images, usable, temperature)
    assert result.loss.item() == pytest.approx(slow, rel=1e-5, abs=1e-6)


def test_nt_xent_is_simclrs_when_every_pair_has_an_image_of_its_own():
    first, second = randn(5, 7), randn(5, 7, seed=1)
    z = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    similarity = (z @ z.T / 0.5).fill_diagonal_(-math.inf)
    expected = torch.nn.functional.cross_entropy(similarity, (torch.arange(10) + 5) % 10)
    fine = torch.ones(5, dtype=torch.bool)
    assert torch.allclose(nt_xent(first, second, torch.arange(5), fine, 0.5, False).loss, expected)


def test_nt_xent_terms_and_no_gradient_where_nothing_is_usable():
    same = randn(6, 4)
    fine = torch.ones(6, dtype=torch.bool)
    terms = nt_xent(same, same, torch.arange(6), fine, 0.5, False).terms
    assert terms["positive_similarity"].item() == pytest.approx(1)
    assert terms["accuracy"] == 1
    assert terms["negative_similarity"] < 0.9
    first = same.clone().requires_grad_()
    result = nt_xent(first, same, torch.arange(6), ~fine, 0.5, False)
    result.loss.backward()
    assert result.loss == 0
    assert first.grad.abs().max() == 0


def test_an_unusable_pair_changes_nothing():
    first, second, images = randn(4, 6), randn(4, 6, seed=1), torch.arange(4)
    usable = torch.tensor([True, True, False, True])
    rest = nt_xent(first[usable], second[usable], images[usable], usable[usable], 0.5, False)
    assert torch.allclose(nt_xent(first, second, images, usable, 0.5, False).loss, rest.loss)


def slow_voco(bases, targets, overlap, base_fine, target_fine) -> tuple[float, float, float]:
    """Crop by crop."""
    near = near_weight = far = far_number = regular = pairs = 0.0
    for b in range(len(bases)):
        for t in range(targets.shape[1]):
            for k in range(bases.shape[1]):
                if not (target_fine[b, t] and base_fine[b, k]):
                    continue
                similarity, truth = max(cosine(targets[b, t], bases[b, k]), 0), overlap[b, t, k].item()
                near -= truth * math.log(1 - abs(truth - similarity) + 1e-6)
                near_weight += truth
                if truth == 0:
                    far, far_number = far + similarity**2, far_number + 1
        for i in range(bases.shape[1]):
            for j in range(i + 1, bases.shape[1]):
                if base_fine[b, i] and base_fine[b, j]:
                    regular, pairs = regular + max(cosine(bases[b, i], bases[b, j]), 0), pairs + 1
    return near / near_weight, far / far_number, regular / pairs


@pytest.mark.parametrize(("batch", "bases", "targets", "width"), [(2, 4, 3, 6), (1, 8, 2, 3), (3, 2, 4, 5)])
@pytest.mark.parametrize("all_usable", [True, False])
def test_voco_loss_against_loops(batch, bases, targets, width, all_usable):
    base, target = randn(batch, bases, width), randn(batch, targets, width, seed=1)
    overlap = randn(batch, targets, bases, seed=2).relu()
    overlap = overlap / overlap.sum(dim=2, keepdim=True).clamp(min=1e-3)
    base_fine = torch.ones(batch, bases, dtype=torch.bool)
    target_fine = torch.ones(batch, targets, dtype=torch.bool)
    if not all_usable and bases > 2:
        base_fine[0, 1] = target_fine[0, 0] = False
    parts = voco_loss(base, target, overlap, base_fine, target_fine, together=False)
    slow = slow_voco(base, target, overlap, base_fine, target_fine)
    assert [p.item() for p in parts[:3]] == pytest.approx(slow, rel=1e-4)


def test_voco_gradient_stops_at_the_bases_but_for_the_regularisation():
    base, target = randn(2, 4, 6).requires_grad_(), randn(2, 3, 6, seed=1).requires_grad_()
    fine = torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    parts = voco_loss(base, target, torch.full((2, 3, 4), 0.25), *fine, together=False)
    (parts.overlapping + parts.apart).backward(retain_graph=True)
    assert base.grad is None
    assert target.grad.abs().max() > 0
    parts.regularisation.backward()
    assert base.grad.abs().max() > 0


@pytest.mark.parametrize(("batch", "places", "width"), [(3, 4, 5), (1, 2, 3)])
def test_alignment_against_loops(batch, places, width):
    predicted, projected = randn(2 * batch, places, width).requires_grad_(), randn(2 * batch, places, width, seed=1)
    projected.requires_grad_()
    usable = torch.arange(batch) != 1
    result = alignment_loss(predicted, projected, usable, together=False)
    values = [
        1 - cosine(predicted[half * batch + b, p].detach(), projected[(1 - half) * batch + b, p].detach())
        for half in (0, 1)
        for b in range(batch)
        for p in range(places)
        if usable[b]
    ]
    assert result.loss.item() == pytest.approx(sum(values) / len(values), rel=1e-5)
    result.loss.backward()
    assert predicted.grad.abs().max() > 0
    assert projected.grad is None


@pytest.mark.parametrize("shape", [(12, 4), (3, 5, 4)])
def test_batch_standardise_is_batch_norm_without_weights(shape):
    x = 2 * randn(*shape) + 3
    expected = torch.nn.functional.batch_norm(x.reshape(-1, 4), None, None, training=True).view(shape)
    assert torch.allclose(BatchStandardise(4)(x), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(10, 4), (10, 3, 4)])
def test_rows_that_are_not_usable_do_not_count_in_batch_standardise(shape):
    x, usable = randn(*shape), torch.arange(10) % 3 > 0
    x[~usable] = 100.0
    expected = BatchStandardise(4)(x[usable])
    torch.testing.assert_close(BatchStandardise(4)(x, usable)[usable], expected, atol=1e-4, rtol=1e-4)
    assert BatchStandardise(4)(x, torch.zeros(10, dtype=torch.bool)).isfinite().all()


def test_layer_standardise_is_layer_norm_without_weights():
    x = 2 * randn(1, 6) + 3
    expected = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
    assert torch.allclose(LayerStandardise(6)(x), expected, atol=1e-5)
    assert not list(LayerStandardise(6).parameters())


def test_too_few_images_warn_or_raise_with_the_number_of_the_recipe():
    with pytest.raises(ValueError, match=r"batch of one.*--batch-size 32"):
        check_images("SimCLR", 1, enough=8, recipe=32, together=False)
    with pytest.warns(UserWarning, match=r"4 is too small.*The recipe has 32.*--batch-size 32"):
        check_images("SimCLR", 4, enough=8, recipe=32, together=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_few("SimCLR", 8, enough=8, recipe=32, together=False)
