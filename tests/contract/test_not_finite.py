"""Losses, gradients and weights that are not finite, in real trainings: said at once, left out, never saved."""

from __future__ import annotations

import itertools
import math
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger

import nnunet_ssl.finetune.phases
from nnunet_ssl.methods.mae import MAE
from nnunet_ssl.recipes import build_optimizer
from nnunet_ssl.trainers.finetuning import SSLFinetuneSawtoothTrainer, SSLScratchTrainer
from nnunet_ssl.trainers.loop import epochs
from nnunet_ssl.trainers.pretraining import SSLMAETrainer

sys.path.insert(0, str(Path(__file__).parent))  # child processes import it by name as well
import trained_by_many
from trained_by_many import Poison

SSL = {"num_epochs": 2, "warmup_epochs": 0, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(epochs, "draw_epoch", lambda *_: None)
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda *_: None)


def poisoned(trainer, poison, monkeypatch):
    """A trainer whose losses are poisoned; notes weights and optimiser states before and after every training step."""
    if isinstance(trainer, SSLMAETrainer):
        real = MAE.forward
        monkeypatch.setattr(
            MAE, "forward", lambda self, inputs: (o := real(self, inputs))._replace(loss=poison(o.loss))
        )
    else:
        build = type(trainer)._build_loss
        trainer._build_loss = lambda: (lambda loss: lambda *given: poison(loss(*given)))(build(trainer))
    seen, step = [], type(trainer).train_step

    def train_step(batch):
        before = everything(trainer)
        result = step(trainer, batch)
        seen.append((before, everything(trainer)))
        return result

    trainer.train_step = train_step
    return seen


def everything(trainer):
    states = trainer.optimizer.state_dict()["state"]
    named = {(index, key): value.clone() for index, state in states.items() for key, value in state.items()}
    return {**{name: p.detach().clone() for name, p in trainer.network.named_parameters()}, **named}


def same(pair):
    before, after = pair  # AdamW makes its states in the first step, of zeros
    return all(torch.equal(value, before.get(key, torch.zeros_like(value))) for key, value in after.items())


def log_of(trainer):
    return next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()


@pytest.mark.parametrize("kind", ["loss", "gradients", "both"])
@pytest.mark.parametrize(
    ("trainer_class", "backbone", "optimizer"),
    [
        (SSLMAETrainer, "unet", "sgd"),
        (SSLMAETrainer, "primus", "adamw"),
        (SSLScratchTrainer, "unet", "sgd"),
        (SSLScratchTrainer, "primus", "adamw"),
    ],
)
def test_the_step_is_left_out_and_the_run_goes_on(
    kind, trainer_class, backbone, optimizer, make_trainer, plans_for, monkeypatch
):
    if kind == "loss" and trainer_class is SSLScratchTrainer:
        pytest.skip("nnU-Net's step has no place for a look at the loss alone")
    settings = {**SSL, "optimizer": optimizer}
    trainer = make_trainer(trainer_class, plans_for(backbone, settings, settings))
    seen = poisoned(trainer, Poison(kind, (0, 4)), monkeypatch)
    trainer.run_training()
    assert [same(pair) for pair in seen] == [number in (0, 4) for number in range(6)]
    lines = [line for line in log_of(trainer).splitlines() if "not finite" in line]
    assert len(lines) == 2
    what = "gradients are" if kind == "gradients" else "loss is"
    # nnU-Net's own training counts from 0, and so does what is said within it.
    first = 0 if trainer_class is SSLScratchTrainer else 1
    for line, number in zip(lines, (first, first + 1), strict=True):
        place = f"epoch {number}, iteration {number}"
        assert f"{place}: the {what} not finite" in line
        assert re.search(r"Images: \S*tiny_\d+, \S*tiny_\d+", line)
    assert math.isfinite(trainer.logger.local_logger.my_fantastic_logging["val_losses"][-1])
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()


@pytest.mark.parametrize("kind", ["loss", "gradients"])
def test_under_a_scaler_too(kind, make_trainer, plans_for, monkeypatch):
    trainer = make_trainer(SSLMAETrainer, plans_for("unet", {**SSL, "optimizer": "sgd"}))
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    seen = poisoned(trainer, Poison(kind, (0, 4)), monkeypatch)
    trainer.run_training()
    assert [same(pair) for pair in seen] == [number in (0, 4) for number in range(6)]
    assert trainer.grad_scaler.get_scale() == 65536 / 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loss", "gradients", "both"])
def test_one_of_two_processes_is_enough(kind, in_processes, plans_for, tmp_path):
    cases = {"mae": ("mae", plans_for("primus", SSL)), "simclr": ("simclr", plans_for("primus", SSL))}
    in_processes(trained_by_many.train_poisoned, 2, {name: (*case, kind) for name, case in cases.items()})
    first, second = (torch.load(tmp_path / f"poisoned_{rank}.pt") for rank in (0, 1))
    for name in cases:
        for step, (one, other) in enumerate(zip(first[name], second[name], strict=True)):
            assert all(torch.equal(w, v) and w.isfinite().all() for w, v in zip(one, other, strict=True)), (name, step)
        moved = [not all(map(torch.equal, a, b)) for a, b in itertools.pairwise(first[name])]
        assert moved == [number not in (0, 4) for number in range(6)], name


@pytest.mark.parametrize(("trainer_class", "block"), [(SSLMAETrainer, "ssl"), (SSLScratchTrainer, "finetune")])
def test_most_of_an_epoch_lost_ends_the_run(trainer_class, block, make_trainer, plans_for, monkeypatch):
    trainer = make_trainer(trainer_class, plans_for("primus", SSL, SSL))
    poisoned(trainer, Poison("both", (3, 5)), monkeypatch)
    with pytest.raises(RuntimeError, match=f"2 of 3 steps of epoch {1 + (block == 'ssl')} .*plans' {block} block"):
        trainer.run_training()


@pytest.mark.parametrize("trainer_class", [SSLMAETrainer, SSLScratchTrainer])
def test_weights_that_are_not_finite_end_the_run_and_are_not_saved(trainer_class, make_trainer, plans_for):
    trainer = make_trainer(trainer_class, plans_for("unet", {**SSL, "num_epochs": 3}, {**SSL, "num_epochs": 3}))
    trainer.save_every = 1
    latest, real = Path(trainer.output_folder) / "checkpoint_latest.pth", trainer.train_step

    def train_step(batch):
        result = real(batch)
        iteration = trainer.position.iteration if hasattr(trainer, "position") else len(trainer.iterations.losses)
        if (trainer.current_epoch, iteration) == (1, 3):
            with torch.no_grad():
                next(trainer.network.parameters()).view(-1)[0] = math.inf
        return result

    trainer.train_step = train_step
    with pytest.raises(RuntimeError, match=r"not finite any more.*checkpoint_latest\.pth.*initial_lr"):
        trainer.run_training()
    saved = torch.load(latest, weights_only=False)
    assert saved["current_epoch"] == 1
    assert all(w.isfinite().all() for w in saved["network_weights"].values())
    names = sorted(p.name for p in Path(trainer.output_folder).glob("checkpoint*"))
    assert "checkpoint_final.pth" not in names
    for name in ("checkpoint_final.pth", "checkpoint_latest.pth"):
        with pytest.raises(RuntimeError, match="not finite any more"):
            trainer.save_checkpoint(str(latest.with_name(name)))
    assert sorted(p.name for p in Path(trainer.output_folder).glob("checkpoint*")) == names
    assert torch.load(latest, weights_only=False)["current_epoch"] == 1


def test_asked_to_stop_it_saves_no_such_weights_either(make_trainer, plans_for):
    trainer = make_trainer(SSLMAETrainer, plans_for("unet", SSL))
    real = trainer.train_step

    def train_step(batch):
        result = real(batch)
        if (trainer.current_epoch, trainer.position.iteration) == (1, 1):
            with torch.no_grad():
                next(trainer.network.parameters()).view(-1)[0] = math.nan
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    trainer.train_step = train_step
    with pytest.raises(RuntimeError, match="not finite any more"):
        trainer.run_training()
    trainer.interruption.ignore()
    saved = torch.load(Path(trainer.output_folder) / "checkpoint_latest.pth", weights_only=True)
    assert (saved["current_epoch"], saved["finished_iterations"]) == (1, [])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_first_steps_of_every_phase_overflow_in_float16(optimizer, make_trainer, plans_for, monkeypatch):
    """Every phase begins with a new optimiser, whose first step the scaler of a GPU may skip. Same as the plain optimiser."""
    monkeypatch.setattr(SSLFinetuneSawtoothTrainer, "_check_start", lambda *_: None)
    short = {
        "num_epochs": 4,
        "decoder_epochs": 2,
        "warmup_epochs": 1,
        "num_iterations_per_epoch": 3,
        "optimizer": optimizer,
    }
    weights = {}
    for fused in (True, False):
        monkeypatch.setattr(
            nnunet_ssl.finetune.phases,
            "build_optimizer",
            lambda given, recipe, f=fused: build_optimizer(given, recipe, fused=f),
        )
        trainer = make_trainer(SSLFinetuneSawtoothTrainer, plans_for("unet", finetune=short))
        trainer.grad_scaler = torch.amp.GradScaler("cpu")
        torch.manual_seed(0)
        monkeypatch.setattr(
            type(trainer), "on_epoch_end", lambda self: setattr(self, "current_epoch", self.current_epoch + 1)
        )
        seen = poisoned(trainer, Poison("gradients", (0, 6)), monkeypatch)
        monkeypatch.setattr(trainer, "get_dataloaders", lambda t=trainer: batches(t))
        trainer.run_training()
        assert [n for n, (before, after) in enumerate(seen) if same((before, after))] == [0, 6]
        assert trainer.grad_scaler.get_scale() == 65536 / 4
        weights[fused] = [p.detach() for p in trainer.network.parameters()]
    for one, other in zip(*weights.values(), strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)  # rubbish is far larger


def batches(trainer):
    generator = torch.Generator().manual_seed(0)

    def draw():
        while True:
            target = torch.randint(0, 2, (2, 1, 16, 24, 16), generator=generator).float()
            yield {"data": torch.randn(2, 1, 16, 24, 16, generator=generator), "target": target, "keys": ["one", "two"]}

    return draw(), draw()
