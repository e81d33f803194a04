"""Settings and failures that change how fast a run is and what memory it takes, but not what it learns."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.trainers.loop import stepping, validation
from nnunet_ssl.trainers.pretraining import trainer_class


def plans(plans_for, backbone="unet", **ssl):
    return plans_for(backbone, {"num_epochs": 1, "warmup_epochs": 0, "batch_size": 4, **ssl})


def trained(trainer, folder: Path) -> dict[str, torch.Tensor]:
    trainer.output_folder, trainer.log_file = str(folder), str(folder / "training_log.txt")
    trainer.run_training()
    return {k: v.detach().clone() for k, v in trainer.method.state_dict().items()}


@pytest.fixture
def folders(tmp_path_factory):
    """Folders for results."""
    return [tmp_path_factory.mktemp(name) for name in ("one", "two", "three")]


@pytest.mark.parametrize(("method", "backbone"), [("mae", "primus"), ("spark3d", "unet")])
def test_recompute_trains_the_same_network(method, backbone, make_trainer, plans_for, folders):
    make = trainer_class(method)
    usual = trained(make_trainer(make, plans(plans_for, backbone)), folders[0])
    frugal = trained(make_trainer(make, plans(plans_for, backbone, recompute=True, accumulate=2)), folders[1])
    parted = trained(make_trainer(make, plans(plans_for, backbone, accumulate=2)), folders[2])
    assert list(frugal) == list(usual)
    assert all(torch.equal(frugal[name], parted[name]) for name in parted)
    continued = make_trainer(make, plans(plans_for, backbone, recompute=True))
    continued.load_checkpoint(str(folders[0] / "checkpoint_final.pth"))  # of a run that did not recompute


@pytest.mark.parametrize("gpu", [False, True])
def test_deterministic_algorithms_are_used_on_gpus_until_the_training_ends(
    gpu, make_trainer, plans_for, folders, monkeypatch
):
    """A CPU stands for the GPU: it computes the same either way."""
    make = trainer_class("mae")
    usual = trained(make_trainer(make, plans(plans_for, "primus")), folders[0])
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda _: True)
    trainer = make_trainer(make, plans(plans_for, "primus", deterministic=True))
    assert not trainer.wants_determinism
    monkeypatch.setattr(make, "wants_determinism", gpu)
    assert trainer._do_i_compile() is not gpu
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda _: False)
    seen = []
    note = partial(note_determinism, seen)
    monkeypatch.setattr(stepping, "optimiser_step", note(stepping.optimiser_step))
    monkeypatch.setattr(validation, "run_case", note(validation.run_case))
    found = trained(trainer, folders[1])
    assert all(torch.equal(found[name], usual[name]) for name in usual)
    steps = len(seen)
    assert steps > 0
    assert not torch.are_deterministic_algorithms_enabled()
    assert ("deterministic algorithms, not compiled" in (folders[1] / "training_log.txt").read_text()) is gpu
    trainer.perform_actual_validation()
    assert seen == [gpu] * len(seen)
    assert len(seen) > steps
    make_trainer(make, plans(plans_for, "primus")).load_checkpoint(str(folders[1] / "checkpoint_final.pth"))
    monkeypatch.setattr(make, "train_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained(make_trainer(make, plans(plans_for, "primus", deterministic=True)), folders[2])
    assert not torch.are_deterministic_algorithms_enabled()


def note_determinism(seen, function):
    def call(*inputs):
        seen.append(torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark)
        return function(*inputs)

    return call


def broken(_graph, _inputs):
    raise RuntimeError("no C compiler\nand a page of advice")


def test_without_a_compiler_the_training_is_that_of_eager_mode(make_trainer, plans_for, folders, monkeypatch, capfd):
    make = trainer_class("simclr")  # its loss in parts calls `encode`, its validation too
    block = {"accumulate": 2, "simclr": {"projector_dim": 16}}
    eager = trained(make_trainer(make, plans(plans_for, **block)), folders[0])
    capfd.readouterr()
    monkeypatch.setattr(make, "_do_i_compile", lambda _: True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    trainer = make_trainer(make, plans(plans_for, **block))
    other = trained(trainer, folders[1])
    assert all(torch.equal(other[name], eager[name]) for name in eager)
    log = (folders[1] / "training_log.txt").read_text()
    lines = [line for line in log.splitlines() if "torch.compile" in line]
    assert len(lines) == 1
    assert "failed (RuntimeError: no C compiler)" in lines[0]
    assert "export nnUNet_compile=0" in lines[0]
    assert "page of advice" not in "".join(capfd.readouterr()) + log
    assert not trainer.compiler.on


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "4 images per process, .* Add --accumulate 2 .* or --recompute .* A new run .*--batch-size N"),
        (
            {"accumulate": 4, "recompute": True},
            "4 images per process in 4 micro-batches, .* on cpu. A new run needs less",
        ),
    ],
)
def test_a_step_without_memory_says_what_to_type(block, message, make_trainer, plans_for, folders, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(stepping, "run_batch", full)
    with pytest.raises(torch.OutOfMemoryError, match=message) as caught:
        trained(make_trainer(trainer_class("mae"), plans(plans_for, **block)), folders[0])
    from nnunet_ssl.messages import one_line

    assert one_line(caught.value) == str(caught.value)  # one line for the user
    assert "can't allocate" in str(caught.value.__cause__)


def test_other_errors_of_a_step_stay_what_they_are(make_trainer, plans_for, folders, monkeypatch):
    def wrong(*_):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(stepping, "run_batch", wrong)
    with pytest.raises(RuntimeError, match=r"^shapes cannot be multiplied$"):
        trained(make_trainer(trainer_class("mae"), plans(plans_for)), folders[0])
