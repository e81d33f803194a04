"""Compiled code that fails in the first steps, in whatever way, costs time and one line: the run is that without compiling."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssl.methods.mae import MAE
from nnunet_ssl.trainers.device.compiling import TRIALS, Compiler, Elsewhere
from nnunet_ssl.trainers.distributed.processes import Consensus
from nnunet_ssl.trainers.loop import stepping
from nnunet_ssl.trainers.pretraining import trainer_class

sys.path.insert(0, str(Path(__file__).parent))  # child processes import them by name as well
import trained_by_many
from failing_compilers import REASONS, compiling

SHORT = {"num_epochs": 1, "warmup_epochs": 0, "batch_size": 4, "num_iterations_per_epoch": 2}
SHORT |= {"num_val_iterations_per_epoch": 1, "simclr": {"projector_dim": 16}}

pytestmark = pytest.mark.filterwarnings("ignore:.*is too small")


@pytest.fixture
def train(make_trainer, plans_for, tmp_path):
    """Function (failure or None, method, backbone, settings) -> (trainer, weights, optimiser state, log)."""

    def run(failure, method, backbone, **ssl):
        trainer = make_trainer(trainer_class(method), plans_for(backbone, {**SHORT, **ssl}))
        folder = tmp_path / str(failure)
        folder.mkdir()
        trainer.output_folder, trainer.log_file = str(folder), str(folder / "training_log.txt")
        with compiling(failure):
            trainer.run_training()
        weights = {k: v.detach().clone() for k, v in trainer.method.state_dict().items()}
        return trainer, weights, trainer.optimizer.state_dict()["state"], (folder / "training_log.txt").read_text()

    return run


CASES = [
    ("forward", "mae", "primus", {}),
    ("backward", "mae", "primus", {"accumulate": 2}),
    ("strides", "mae", "primus", {}),
    ("compiling", "mae", "unet", {}),
    ("backward", "simclr", "primus", {}),
    ("forward", "simclr", "primus", {"accumulate": 2}),
    (
        "held-out",
        "simclr",
        "primus",
        {"accumulate": 2},
    ),  # whose batches are encoded without gradients, before they are with them
    ("held-out", "mae", "primus", {}),
    ("forward", "self_distillation", "unet", {}),  # whose centre and teacher move once
    ("backward", "self_distillation", "primus", {"self_distillation": {"momentum": 0.5}}),
]


@pytest.mark.parametrize(("failure", "method", "backbone", "ssl"), CASES)
def test_the_run_is_that_without_compiling(failure, method, backbone, ssl, train):
    _, weights, states, _ = train(None, method, backbone, **ssl)
    trainer, found, found_states, log = train(failure, method, backbone, **ssl)
    # Where only the held-out batches fail, the training before them was compiled, and rounds in its own way.
    same = torch.allclose if (failure, method) == ("held-out", "mae") else torch.equal
    assert all(same(found[name], weights[name]) for name in weights)
    assert all(same(found_states[i][k], value) for i, state in states.items() for k, value in state.items())
    lines = [line for line in log.splitlines() if "torch.compile" in line]
    assert len(lines) == 1
    assert f"failed ({REASONS[failure]}" in lines[0]
    assert "export nnUNet_compile=0" in lines[0]
    assert "page of advice" not in log
    assert not trainer.compiler.on


def test_what_also_fails_without_compiling_is_not_blamed_on_it(train, monkeypatch):
    calls = []

    def wrong(method, _inputs):
        calls.append(torch.compiler.is_compiling())
        raise ValueError("the method has a mistake")

    monkeypatch.setattr(MAE, "forward", wrong)
    with pytest.raises(ValueError, match=r"^the method has a mistake$"):
        train("none", "mae", "primus")
    assert len(calls) >= 2
    assert not calls[-1]


SGD = {"optimizer": "sgd", "initial_lr": 1e-2}  # AdamW blows up the smallest difference
# What the second of two processes does, while the first one's compiler is fine: (failure, method, settings).
TWO = {
    "mae-forward": ("forward", "mae", {}),
    "mae-backward": ("backward", "mae", {"accumulate": 2}),
    "mae-compiling": ("compiling", "mae", {}),
    "mae-held-out": ("held-out", "mae", SGD),
    "mae-alone": ("alone", "mae", SGD),
    "simclr-forward": ("forward", "simclr", {}),
    "simclr-backward": ("backward", "simclr", {"accumulate": 2}),
}
SILENT = ("mae-held-out", "mae-alone")  # in these only the second process goes on without compiling, or never did


@pytest.mark.slow
def test_one_of_two_fails_and_both_do_the_step_again(in_processes, plans_for, tmp_path):
    """Two epochs of two steps: every process must know in each step whether the others wait for its word."""
    cases: dict[str, Any] = {}
    for name, (failure, method, ssl) in TWO.items():
        cases[name] = (method, plans_for("primus", {**SHORT, "num_epochs": 2, **ssl}), failure)
    in_processes(trained_by_many.train_with_failures, 2, cases)
    first, second = (torch.load(tmp_path / f"failures_{rank}.pt") for rank in (0, 1))
    for name in TWO:
        (expected, weights, log), (_, others, _) = first[name], second[name]
        tolerance = 1e-5 if name in SILENT else 0  # compiled code adds up in another order
        assert all(torch.allclose(weights[k], expected[k], rtol=0, atol=tolerance) for k in expected), name
        assert all(torch.equal(weights[k], others[k]) for k in expected), name
        lines = [line for line in log.splitlines() if "torch.compile" in line]
        assert len(lines) == (name not in SILENT), name
        assert all("failed (in another process)" in line for line in lines), name


class Processes:
    """Two processes in turns: what the first one says, and what the second one answers."""

    def __init__(self, others: list[bool]) -> None:
        self.others, self.said = others, []

    def all_fine(self, fine: bool) -> bool:
        self.said.append(fine)
        return self.others.pop(0) and fine


def fails(error):
    raise error


def test_all_processes_say_a_word_for_each_of_the_first_steps():
    """Also those that run as they are by then, or never compiled: the others wait for it."""
    said: list[str] = []
    compilers = [Compiler(True, said.append), Compiler(True, said.append), Compiler(False, pytest.fail)]
    compilers[2].join_trial()
    compilers[1].attempt(False, lambda: fails(RuntimeError("kernel")), lambda: "again")  # a held-out batch
    assert [c.on for c in compilers] == [True, False, False]
    for compiler in compilers:
        together = Processes([True] * TRIALS)
        for step in range(TRIALS):
            assert compiler.on_trial(True)
            assert compiler.attempt(True, lambda s=step: s, fails, together.all_fine) == step
        assert not compiler.on_trial(True)
        assert together.said == [True] * TRIALS
    assert sum("torch.compile failed (RuntimeError: kernel)" in line for line in said) == 1


def test_after_a_failure_nobody_waits_for_a_word():
    for own, others in ((True, False), (False, True)):
        said: list[str] = []
        compiler, together = Compiler(True, said.append), Processes([others])
        step = (lambda: "step") if own else (lambda: fails(RuntimeError("kernel")))
        assert compiler.attempt(True, step, lambda: "again", together.all_fine, pytest.fail) == "again"
        assert together.said == [own]
        assert not compiler.on_trial(True)
        reason = "in another process" if own else "RuntimeError: kernel"
        assert [f"failed ({reason})" in line for line in said] == [False, True]


def test_where_others_wait_nothing_is_done_again():
    """An error between two exchanges, which nothing compiles: the process ends with it, and so do the others."""
    together = Consensus(several=False)
    compiler = Compiler(True, lambda _: None)

    def step():
        with together.meet():
            fails(ValueError("no memory to compare"))

    with pytest.raises(ValueError, match=r"^no memory to compare$") as caught:
        compiler.attempt(True, step, pytest.fail, pytest.fail, pytest.fail)
    assert caught.value.__cause__ is None
    together.all_fine = lambda _: False
    with pytest.raises(Elsewhere), together.meet():
        pytest.fail("another process is not here")


def test_what_fails_while_batches_are_prepared_is_not_part_of_the_attempt(make_trainer, plans_for, monkeypatch):
    """Others would wait in the exchange that follows."""
    trainer = make_trainer(trainer_class("mae"), plans_for("primus", SHORT))
    with compiling("none"):
        trainer.initialize()
        trainer.is_ddp = True
        trainer.consensus.all_fine = pytest.fail
        monkeypatch.setattr(stepping, "prepare_batch", lambda *_: fails(MemoryError("no memory for views")))
        with pytest.raises(MemoryError, match=r"^no memory for views$"):
            trainer._step({}, 0)
