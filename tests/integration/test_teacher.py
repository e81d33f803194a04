"""A pre-training with a teacher through the commands a user types: train, give the teacher away, plan from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_ssl.checkpoints.read import read_checkpoint

pytestmark = pytest.mark.slow


def test_pretrain_export_and_plan_from_the_teacher(nnunet_folders, run_command, tiny_dataset, tmp_path):
    folders = {**nnunet_folders, "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    dataset = tiny_dataset(folders["nnUNet_raw"], 903, num_cases=4, shape=(32, 32, 32))
    command = [
        "nnUNetv2_pretrain",
        "903",
        "--method",
        "self_distillation",
        "--backbone",
        "resenc_tiny",
        "--epochs",
        "1",
    ]
    command += ["--iterations-per-epoch", "2", "--val-iterations-per-epoch", "1", "--batch-size", "2", "-np", "1"]
    command += ["--set", "self_distillation.momentum=0.5", "--set", "self_distillation.prototypes=16", "-device", "cpu"]
    run_command(command, folders)
    (run,) = (Path(folders["nnUNet_results"]) / dataset.name).glob("SSLSelfDistillationTrainer__*/fold_all")
    checkpoint = run / "checkpoint_final.pth"
    assert list((run / "previews").glob("*.png"))
    out = tmp_path / "teacher"
    run_command(["nnUNetv2_pretrain_export", checkpoint, "-o", out, "--weights", "teacher"], folders)
    saved, exported = read_checkpoint(checkpoint), read_checkpoint(out / "checkpoint_final.pth")["network_weights"]
    assert all(torch.equal(exported[k], v) for k, v in saved["ssl"]["teacher"].items())
    assert any(not torch.equal(exported[k], v) for k, v in saved["network_weights"].items())
    planned = ["nnUNetv2_plan_finetune", "-d", "903", "-pretrained_weights", out / "checkpoint_final.pth"]
    assert "-tr SSLFinetuneTrainer" in run_command(planned, folders).stdout
