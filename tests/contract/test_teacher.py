"""The teacher of a pre-training: follows its student step by step, lies in the checkpoint, and can be given away instead."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.cli import export, info
from nnunet_ssl.methods.self_distillation import SelfDistillation
from nnunet_ssl.trainers.loop import epochs
from nnunet_ssl.trainers.pretraining import SSLMAETrainer, SSLSelfDistillationTrainer

SSL = {"num_epochs": 2, "warmup_epochs": 0, "self_distillation": {"momentum": 0.7, "final_momentum": 0.9}}
STEPS = 6  # of two epochs


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(epochs, "draw_epoch", lambda *_: None)


def network_of(trainer) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in trainer.method.bare_network.state_dict().items()}


def slow_parts(trainer) -> dict[str, torch.Tensor]:
    """Everything that only `after_step` changes."""
    return {
        k: v.detach().clone()
        for k, v in trainer.method.state_dict().items()
        if k.startswith(("teacher", "teacher_head", "centre"))
    }


@pytest.fixture(params=["unet", "primus"])
def trained(request, make_trainer, plans_for, monkeypatch):
    """(checkpoint file, what a loop over the steps makes of the networks)."""
    trainer = make_trainer(SSLSelfDistillationTrainer, plans_for(request.param, SSL))
    trainer.initialize()
    averaged, step, number = network_of(trainer), trainer.train_step, 0

    def train_step(batch):
        nonlocal number
        result = step(batch)
        momentum = 0.9 - 0.2 * (1 + math.cos(math.pi * number / STEPS)) / 2
        for name, fast in network_of(trainer).items():
            averaged[name] = momentum * averaged[name] + (1 - momentum) * fast
        number += 1
        return result

    trainer.train_step = train_step
    trainer.run_training()
    assert number == STEPS
    return request.param, Path(trainer.output_folder) / "checkpoint_final.pth", averaged


def test_teacher_in_the_checkpoint_is_the_moving_average_and_can_be_exported(
    trained, make_trainer, plans_for, tmp_path, capsys
):
    backbone, file, averaged = trained
    checkpoint = read_checkpoint(file)
    teacher, student = checkpoint["ssl"]["teacher"], checkpoint["network_weights"]
    assert teacher.keys() == student.keys() == averaged.keys()
    for name, value in averaged.items():
        torch.testing.assert_close(teacher[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert max((teacher[k] - student[k]).abs().max() for k in teacher) > 1e-4

    export.main([str(file), "-o", str(tmp_path / "student")])
    export.main([str(file), "-o", str(tmp_path / "teacher"), "--weights", "teacher"])
    export.main([str(file), "-o", str(tmp_path / "st"), "--weights", "teacher", "--format", "safetensors"])
    said = capsys.readouterr().out
    assert "ssl.teacher" in said, "left out of the student's export, and said"
    exported = {n: read_checkpoint(tmp_path / n / "checkpoint_final.pth") for n in ("student", "teacher")}
    exported["st"] = read_checkpoint(tmp_path / "st" / "model.safetensors")
    for name, expected in (("student", student), ("teacher", teacher), ("st", teacher)):
        weights = exported[name]["network_weights"]
        assert all(torch.equal(weights[k], expected[k]) for k in expected), name
        assert "teacher" not in exported[name]["ssl"], name
    card = (tmp_path / "teacher" / "README.md").read_text()
    assert "the moving average of the network that was trained" in card
    if backbone == "unet":  # a plain file for stock nnU-Net
        trainer = make_trainer(nnUNetTrainer, plans_for(backbone), 0)
        trainer.initialize()
        load_pretrained_weights(trainer.network, str(tmp_path / "teacher" / "checkpoint_final.pth"))
        loaded = trainer.network.state_dict()
        assert all(torch.equal(loaded[k], teacher[k]) for k in loaded if k.startswith("encoder."))


def test_info_says_which_weights_a_file_holds(trained, tmp_path, capsys):
    _, file, _ = trained
    export.main([str(file), "-o", str(tmp_path / "teacher"), "--weights", "teacher"])
    capsys.readouterr()
    found = {}
    for name, path in (("run", file), ("teacher", tmp_path / "teacher" / "checkpoint_final.pth")):
        info.main([str(path), "--json"])
        found[name] = json.loads(capsys.readouterr().out)
    assert (found["run"]["weights"], found["run"]["teacher"]) == ("student", True)
    assert (found["teacher"]["weights"], found["teacher"]["teacher"]) == ("teacher", False)
    info.main([str(file)])
    said = capsys.readouterr().out
    assert "student, its teacher lies beside them" in said
    assert f"nnUNetv2_pretrain_export {file} -o FOLDER --weights teacher" in said
    with pytest.raises(SystemExit):  # an export holds one network
        export.main([str(tmp_path / "teacher"), "-o", str(tmp_path / "again"), "--weights", "teacher"])
    assert "holds no teacher" in capsys.readouterr().err


def test_tasks_without_a_teacher_say_so(make_trainer, plans_for, tmp_path, capsys):
    trainer = make_trainer(SSLMAETrainer, plans_for("unet", {"num_epochs": 1, "warmup_epochs": 0}))
    trainer.run_training()
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    assert "teacher" not in read_checkpoint(file)["ssl"]
    with pytest.raises(SystemExit):
        export.main([str(file), "-o", str(tmp_path / "out"), "--weights", "teacher"])
    said = capsys.readouterr().err
    assert "of mae holds no teacher" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_step_that_is_left_out_moves_nothing(make_trainer, plans_for, monkeypatch):
    trainer = make_trainer(SSLSelfDistillationTrainer, plans_for("unet", {**SSL, "num_epochs": 1}))
    trainer.initialize()
    seen, step, compare = [slow_parts(trainer)], trainer.train_step, SelfDistillation.compare

    def poisoned(self, encoded, inputs):
        output = compare(self, encoded, inputs)
        if not self.training or len(seen) != 2:
            return output
        bad = {k: v * math.nan for k, v in output.statistics.items()}
        return output._replace(loss=output.loss * math.nan, statistics=bad)

    def train_step(batch):
        result = step(batch)
        seen.append(slow_parts(trainer))
        return result

    monkeypatch.setattr(SelfDistillation, "compare", poisoned)
    trainer.train_step = train_step
    trainer.run_training()
    moved = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in pairwise(seen)]
    assert moved == [True, False, True]
    assert all(v.isfinite().all() for v in seen[-1].values())
