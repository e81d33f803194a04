"""A batch taken in parts: the same training, and the same exact resume."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from nnunet_ssl.trainers.loop import stepping
from nnunet_ssl.trainers.pretraining import trainer_class

FAST = {"self_distillation": {"momentum": 0.5}}  # a teacher that moves as far as its student does


def plans(plans_for, **ssl):
    return plans_for("unet", {"num_epochs": 1, "warmup_epochs": 0, "batch_size": 4, "optimizer": "sgd", **FAST, **ssl})


def weights(trainer) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in trainer.method.state_dict().items()}


def trained(trainer, folder: Path):
    trainer.output_folder, trainer.log_file = str(folder), str(folder / "training_log.txt")
    trainer.run_training()
    return weights(trainer)


@pytest.mark.parametrize(("method", "lr"), [("mae", 2e-3), ("simclr", 0.1), ("self_distillation", 2e-3)])
def test_parts_train_like_the_whole_and_resume_exactly(
    method, lr, make_trainer, plans_for, tmp_path_factory, monkeypatch
):
    monkeypatch.setattr(stepping, "autocast", lambda device: nullcontext())  # half precision would blur the comparison
    make, parted = trainer_class(method), plans(plans_for, accumulate=2, initial_lr=lr)
    folders = [tmp_path_factory.mktemp(name) for name in ("whole", "parts", "stopped")]
    whole = trained(make_trainer(make, plans(plans_for, initial_lr=lr)), folders[0])
    parts = trained(make_trainer(make, parted), folders[1])
    start = make_trainer(make, parted)
    start.initialize()
    before = weights(start)
    moved = max((whole[n] - before[n]).abs().max().item() for n in before)
    apart = max((whole[n] - parts[n]).abs().max().item() for n in before)
    assert moved > 1e-3
    assert apart < 0.01 * moved
    stopped = make_trainer(make, parted)
    stopped.output_folder = str(folders[2])
    original = stopped.train_step

    def train_step(batch):
        if stopped.position.iteration == 1:
            signal.raise_signal(signal.SIGTERM)
        return original(batch)

    stopped.train_step = train_step
    with pytest.raises(SystemExit):
        stopped.run_training()
    resumed = make_trainer(make, parted)
    resumed.load_checkpoint(str(folders[2] / "checkpoint_latest.pth"))
    assert len(resumed.position.replayed) == 1  # iterations count optimisation steps, not parts
    again = trained(resumed, folders[2])
    assert [n for n in parts if not torch.equal(parts[n], again[n])] == []
    log = (folders[1] / "training_log.txt").read_text()
    assert "batch size 4 in 2 micro-batches per process" in log
    assert log.count("WARNING: SimCLR learns by comparing the images of a batch") == (method == "simclr")


def test_parts_that_are_uneven_are_refused(make_trainer, plans_for):
    trainer = make_trainer(trainer_class("mae"), plans(plans_for, accumulate=3, batch_size=None))  # the plans' 2
    with pytest.raises(ValueError, match=r"batch of 2 .* 3 micro-batches \(accumulate\). .*--batch-size 3"):
        trainer.initialize()
