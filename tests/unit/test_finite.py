"""What is not finite never becomes a weight, and is said."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnunet_ssl.recipes import PRETRAINING, build_optimizer
from nnunet_ssl.trainers.loop.epochs import mean_over_processes
from nnunet_ssl.trainers.loop.finite import LINES, Watch, all_finite, require_finite, require_progress, step_where
from nnunet_ssl.trainers.loop.state import contiguous

RECIPES = {"sgd": PRETRAINING["unet"], "adamw": PRETRAINING["primus"]}
INFINITE, FINITE = math.inf, 1.0


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(4, 8, 3), nn.InstanceNorm3d(8, affine=True), nn.Conv3d(8, 4, 3))


def fill_the_allocator():
    """Whoever takes memory and does not write to it reads NaN, or what is huge."""
    for size in (4, 8, 864):
        blocks = [torch.full((size,), value) for value in (math.nan, 1e30) for _ in range(20)]
        del blocks


def gradients(module, step, factor=FINITE):
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * factor
        parameter.grad = torch.empty_like(parameter).copy_(drawn)  # lies as the weight does, as autograd has it


def train(module, optimizer, steps, scaler=None):
    """So many steps with given gradients, of which the first ones are infinite where steps say so."""
    for step, factor in steps:
        fill_the_allocator()
        gradients(module, step, factor * (1 if scaler is None else scaler.get_scale()))
        if scaler is None:
            optimizer.step()
            continue
        scaler.scale(torch.zeros(()))  # lets it begin
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()


def assert_same(module, other):
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, two)


STEPS = [(0, INFINITE), (1, INFINITE), (2, FINITE), (3, FINITE), (4, INFINITE), (5, FINITE)]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("resumed", [None, 0, 1, 3])
def test_one_kernel_under_a_scaler_is_the_plain_optimiser(name, resumed):
    """Also continued from a checkpoint, written before the first step, after one that was skipped, and later."""
    module = network()
    twin = copy.deepcopy(module)
    optimizer = build_optimizer(module.parameters(), RECIPES[name])
    plain = build_optimizer(twin.parameters(), RECIPES[name], fused=False)
    scaler, other = torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu")
    train(twin, plain, STEPS, other)
    if resumed is None:
        train(module, optimizer, STEPS, scaler)
    else:
        train(module, optimizer, STEPS[:resumed], scaler)
        states = copy.deepcopy((optimizer.state_dict(), scaler.state_dict()))
        optimizer, scaler = build_optimizer(module.parameters(), RECIPES[name]), torch.amp.GradScaler("cpu")
        optimizer.load_state_dict(states[0])
        scaler.load_state_dict(states[1])
        train(module, optimizer, STEPS[resumed:], scaler)
    assert_same(module, twin)
    assert scaler.get_scale() == other.get_scale() < 65536


@pytest.mark.parametrize("old", ["nothing", "None"])
def test_checkpoints_from_before_the_momentum_began_at_zero(old):
    module = network()
    twin = copy.deepcopy(module)
    optimizer = build_optimizer(module.parameters(), RECIPES["sgd"])
    state = optimizer.state_dict()
    state["state"] = {} if old == "nothing" else {i: {"momentum_buffer": None} for i in state["state"]}
    fill_the_allocator()
    optimizer.load_state_dict(state)
    train(module, optimizer, STEPS, torch.amp.GradScaler("cpu"))
    train(twin, build_optimizer(twin.parameters(), RECIPES["sgd"], fused=False), STEPS, torch.amp.GradScaler("cpu"))
    assert_same(module, twin)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("turned", ["module", "twin"])
def test_continues_from_the_other_memory_layout(name, turned):
    """channels_last on one machine, contiguous on the other: kernels of one piece go through the memory as it lies."""
    module = network()
    twin = copy.deepcopy(module)
    (module if turned == "module" else twin).to(memory_format=torch.channels_last_3d)
    optimizer, other = (build_optimizer(m.parameters(), RECIPES[name]) for m in (module, twin))
    train(module, optimizer, [(0, FINITE), (1, FINITE)])
    for step, as_in_files in ((2, True), (3, False)):
        state = copy.deepcopy(optimizer.state_dict())
        twin.load_state_dict(module.state_dict())
        other.load_state_dict(contiguous(state) if as_in_files else state)
        train(module, optimizer, [(step, FINITE)])
        train(twin, other, [(step, FINITE)])
        assert_same(module, twin)


def test_a_file_holds_every_weight_once_and_in_order():
    weight = torch.randn(6, 4, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    given = {"a": weight, "all_modules": {"a": weight.detach()}, "bias": torch.randn(6), "step": 3}
    made = contiguous(given)
    assert made["a"].is_contiguous()
    assert torch.equal(made["a"], weight)
    assert made["a"].data_ptr() == made["all_modules"]["a"].data_ptr() != weight.data_ptr()
    assert made["bias"] is given["bias"]
    assert made["step"] == 3


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_left_out_leaves_everything(name, fused):
    module = network()
    optimizer = build_optimizer(module.parameters(), RECIPES[name], fused=fused)
    for step in (0, 1, 2):  # before the first step, and later
        before = copy.deepcopy((module.state_dict(), optimizer.state_dict()["state"]))
        gradients(module, step, math.nan)
        step_where(optimizer, torch.tensor(False))
        torch.testing.assert_close(module.state_dict(), before[0], rtol=0, atol=0)
        states = optimizer.state_dict()["state"]
        for index, state in states.items():  # AdamW makes its states in the first step, of zeros
            for key, value in state.items():
                assert torch.equal(value, before[1].get(index, {}).get(key, torch.zeros_like(value)))
        gradients(module, step)
        step_where(optimizer, torch.tensor(True))
        assert not torch.equal(module[0].weight, before[0]["0.weight"])
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_found(value):
    module = network()
    assert all_finite(module.parameters())
    assert all_finite(
        [torch.full((3,), 3e38), torch.zeros(0), torch.tensor([1])]
    )  # whose norm overflows, empty, integers
    with torch.no_grad():
        module[2].weight[1, 2, 0, 1, 2] = value
    assert not all_finite(module.parameters())
    with pytest.raises(RuntimeError, match=r"not finite any more.*latest\.pth.*initial_lr.*now 0\.01"):
        require_finite(module.parameters(), 0.01, "the last good checkpoint is latest.pth")


def test_watch_says_what_and_where_and_counts():
    said: list[str] = []
    watch = Watch(said.append)
    for iteration in range(LINES + 3):
        loss, fine = torch.tensor(math.nan if iteration % 2 else 1.0), torch.tensor(iteration == 0)
        watch.note(f"epoch 3, iteration {iteration}", loss, fine, ["patient_1", "patient_2"])
        assert len(said) == min(iteration, LINES)  # at once
    assert said[0].startswith("WARNING: epoch 3, iteration 1: the loss is not finite")
    assert said[1].startswith("WARNING: epoch 3, iteration 2: the gradients are not finite")
    assert all(line.endswith("Images: patient_1, patient_2") for line in said)
    assert watch.end_epoch() == LINES + 2
    assert said[-1].startswith(f"WARNING: {LINES + 2} steps")
    assert watch.end_epoch() == 0
    assert len(said) == LINES + 1


@pytest.mark.parametrize(
    ("left_out", "scale", "ends"), [(2, None, False), (3, None, True), (4, 32768.0, False), (4, 0.5, True)]
)
def test_most_of_an_epoch_lost_ends_the_run(left_out, scale, ends):
    """But for the first steps of a GradScaler, which may be a whole short epoch."""
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    trainer = SimpleNamespace(grad_scaler=scaler, num_iterations_per_epoch=4, current_epoch=7, initial_lr=0.1)
    if not ends:
        require_progress(trainer, left_out, "ssl")
        return
    with pytest.raises(RuntimeError, match=f'{left_out} of 4 steps of epoch 8 .*"initial_lr" in the plans\' ssl block'):
        require_progress(trainer, left_out, "ssl")


def test_means_are_of_what_is_finite():
    losses = [torch.tensor(1.0), torch.tensor(math.inf), 3]
    results = [{"loss": loss, "a": math.nan} for loss in losses]
    means = mean_over_processes(results, torch.device("cpu"))
    assert means["loss"] == 2
    assert math.isnan(means["a"])
