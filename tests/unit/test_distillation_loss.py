"""Self-distillation's losses against loops over tokens, its teacher and its schedules against what they are defined as."""

from __future__ import annotations

from math import cos, exp, log, pi

import pytest
import torch
from torch import nn

from nnunet_ssl.heads.projector import PrototypeHead, cell_features, pooled_features
from nnunet_ssl.heads.teacher import RunningMean, follow, rising_momentum, twin_of, warmed_up
from nnunet_ssl.losses.distillation_loss import (
    assignment_health,
    centred_assignment,
    distillation,
    sinkhorn_assignment,
)

ROWS, K = 7, 5
YES, NO = torch.tensor(True), torch.tensor(False)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def scores() -> torch.Tensor:
    """Cosines of tokens with prototypes."""
    return drawn(ROWS, K)


def test_centred_and_sharpened_is_a_softmax(scores):
    centre, temperature = drawn(K, seed=1), 0.07
    found = centred_assignment(scores, centre, torch.tensor(temperature))
    for row in range(ROWS):
        powers = [exp((scores[row, k].item() - centre[k].item()) / temperature) for k in range(K)]
        assert found[row].tolist() == pytest.approx([p / sum(powers) for p in powers], rel=1e-4)


def test_sinkhorn_is_three_rounds_over_columns_and_rows(scores):
    weight = torch.ones(ROWS)
    weight[2] = 0  # which nobody may notice
    temperature = 0.05
    found = sinkhorn_assignment(scores, weight, temperature, together=False)
    table = [[exp(scores[n, k].item() / temperature) for k in range(K)] for n in range(ROWS) if n != 2]
    for _ in range(3):
        for k in range(K):
            total = sum(row[k] for row in table)
            for row in table:
                row[k] /= total
        table = [[value / sum(row) for value in row] for row in table]
    expected = torch.tensor(table)
    torch.testing.assert_close(found[[n for n in range(ROWS) if n != 2]], expected, rtol=1e-4, atol=1e-6)
    assert found[2].abs().max() == 0


def test_sinkhorn_shares_the_prototypes_out():
    """Where all tokens prefer the same prototype, a softmax would give it nearly everything."""
    alike = drawn(60, K) * 0.1
    alike[:, 0] += 0.8
    found = sinkhorn_assignment(alike, torch.ones(60), 0.05, together=False)
    assert alike.div(0.05).softmax(dim=1).mean(dim=0)[0] > 0.99
    assert found.mean(dim=0).tolist() == pytest.approx([1 / K] * K, rel=0.02)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_sinkhorn_survives_any_temperature(temperature):
    assert sinkhorn_assignment(drawn(9, 4), torch.ones(9), temperature, together=False).isfinite().all()


def test_distillation_is_a_loop_over_tokens(scores):
    assignment, weight = drawn(ROWS, K, seed=2).softmax(dim=1), torch.tensor([1.0, 0, 1, 1, 0, 1, 1])
    total = 0.0
    for n in range(ROWS):
        powers = [exp(s / 0.1) for s in scores[n].tolist()]
        total -= (
            sum(a * log(p / sum(powers)) for a, p in zip(assignment[n].tolist(), powers, strict=True))
            * weight[n].item()
        )
    found = distillation(assignment, scores, 0.1, weight, weight.sum())
    assert found.item() == pytest.approx(total / 5, rel=1e-5)


def test_nothing_that_counts_has_a_loss_and_gradients_of_zero(scores):
    scores.requires_grad_()
    nothing = torch.zeros(ROWS)
    loss = distillation(torch.full((ROWS, K), 1 / K), scores, 0.1, nothing, nothing.sum())
    loss.backward()
    assert loss == 0
    assert scores.grad.abs().max() == 0


def test_indicators_of_sharp_and_of_equal_assignments():
    one, number = torch.eye(K)[0].expand(ROWS, K), torch.ones(ROWS)
    found = assignment_health(one, one, number)
    assert [found[k].item() for k in ("entropy", "diversity", "agreement")] == pytest.approx([0, 0, 1])
    found = assignment_health(torch.eye(K), torch.eye(K).roll(1, 0), torch.ones(K))
    assert [found[k].item() for k in ("entropy", "diversity", "agreement")] == pytest.approx([0, 1, 0])
    found = assignment_health(torch.full((ROWS, K), 1 / K), one, number)
    assert [found[k].item() for k in ("entropy", "diversity")] == pytest.approx([1, 1])


def test_running_mean_takes_in_batches_that_count():
    mean, momentum = RunningMean(torch.tensor([5.0, 5.0])), 0.9
    expected = [0.0, 0.0]
    for step in range(30):
        total, number = drawn(2, seed=step) * 4, 4.0
        share = max(1 / (step + 1), 1 - momentum)
        expected = [e + share * (t / number - e) for e, t in zip(expected, total.tolist(), strict=True)]
        mean.take_in(total, torch.tensor(number), momentum, YES)
        mean.take_in(torch.full((2,), torch.nan), torch.tensor(number), momentum, NO)
        mean.take_in(torch.zeros(2), torch.tensor(0.0), momentum, YES)
        assert mean.value.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert mean.steps == step + 1


def test_teacher_is_the_moving_average_of_its_student():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    teacher = twin_of(student)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    slow = {k: v.clone().double() for k, v in teacher.state_dict().items()}
    optimizer = torch.optim.SGD(student.parameters(), 0.5)
    for step in range(20):
        student(drawn(8, 3, seed=step)).square().mean().backward()
        optimizer.step()
        momentum = rising_momentum(0.9, 1.0, step / 20)
        follow(teacher, student, momentum, YES)
        for name, fast in student.state_dict().items():
            if fast.is_floating_point():
                slow[name] = momentum * slow[name] + (1 - momentum) * fast.double()
        before = {k: v.clone() for k, v in teacher.state_dict().items()}
        follow(teacher, student, momentum, NO)  # a step that was left out
        assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), slow[name], rtol=1e-4, atol=1e-6, msg=name)
    assert (teacher[0].weight - student[0].weight).abs().max() > 1e-3


def test_schedules():
    momenta = [rising_momentum(0.996, 1.0, step / 100) for step in range(101)]
    assert momenta == pytest.approx([1 - 0.004 * (cos(pi * step / 100) + 1) / 2 for step in range(101)])
    assert (momenta[0], momenta[-1]) == pytest.approx((0.996, 1.0))
    assert momenta == sorted(momenta)
    warm = [warmed_up(0.04, 0.07, 0.3, step / 10) for step in range(11)]
    assert warm == pytest.approx([0.04, 0.05, 0.06] + [0.07] * 8)
    assert warmed_up(0.04, 0.07, 0.0, 0.0) == 0.07


def test_head_is_cosines_with_prototypes_of_length_one_and_norms_over_what_counts():
    torch.manual_seed(0)
    head = PrototypeHead(6, 8, 4, 5)
    features, usable = drawn(6, 6), torch.tensor([True, True, False, True, True, False])
    standard, cosines = head(features, usable)

    def norm(x):
        for feature in range(x.shape[1]):
            counted = [x[n, feature].item() for n in range(6) if usable[n]]
            mean = sum(counted) / 4
            variance = sum((c - mean) ** 2 for c in counted) / 4
            x = x.clone()
            x[:, feature] = (x[:, feature] - mean) / (variance + 1e-5) ** 0.5
        return x

    first, second, third = (layer for layer in head.projector if isinstance(layer, nn.Linear))
    x = norm(third(norm(second(norm(first(features)).relu())).relu()))
    torch.testing.assert_close(standard, x, rtol=1e-3, atol=1e-4)
    for n in range(6):
        for k in range(5):
            e, w = standard[n].tolist(), head.prototypes[k].tolist()
            length = (sum(a * a for a in e) * sum(b * b for b in w)) ** 0.5
            assert cosines[n, k].item() == pytest.approx(
                sum(a * b for a, b in zip(e, w, strict=True)) / length, abs=1e-5
            )


@pytest.mark.parametrize("size", [(8, 12), (8, 12, 4)])
def test_cells_are_averages_of_fine_maps_and_copies_of_coarse_ones(size):
    grid = tuple(s // 2 for s in size)
    fine, coarse = drawn(2, 3, *size), drawn(2, 1, *(s // 4 for s in size))
    found = cell_features([fine, coarse], grid)
    places = torch.cartesian_prod(*(torch.arange(n) for n in grid)).tolist()
    assert found.shape == (2, len(places), 4)
    for cell, place in enumerate(places):
        block = fine[(slice(None), slice(None), *(slice(2 * p, 2 * p + 2) for p in place))]
        torch.testing.assert_close(found[:, cell, :3], block.flatten(2).mean(dim=2))
        assert torch.equal(found[:, cell, 3], coarse[(slice(None), 0, *(p // 2 for p in place))])


def test_the_mean_of_all_cells_is_the_pooled_map():
    class Encoder:
        def features(self, x):
            return [x, x[..., ::2, ::2]]

    image = drawn(2, 3, 8, 8)
    maps = Encoder().features(image)
    torch.testing.assert_close(cell_features(maps, (4, 4)).mean(dim=1), pooled_features(Encoder(), image))
