"""From images to a segmentation with the commands a user types, each in a fresh process."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

PLANS = {"resenc": "nnUNetSSLResEncTinyPlans", "primus": "nnUNetSSLPrimusTinyPlans"}
SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}

# Stock nnUNetTrainer knows no short schedule; everything else is what nnUNetv2_train does.
ONE_EPOCH = """
import torch
from nnunetv2.run.run_training import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

stock = nnUNetTrainer.__init__

def init(self, plans, configuration, fold, dataset_json, device):
    stock(self, plans, configuration, fold, dataset_json, device)
    self.num_epochs = self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 1

if __name__ == "__main__":
    nnUNetTrainer.__init__ = init
    weights = {checkpoint!r}
    run_training("901", {configuration!r}, 0, pretrained_weights=weights, device=torch.device("cpu"))
"""


@pytest.fixture
def folders(nnunet_folders) -> dict[str, str]:
    """nnU-Net's folders and a modest number of workers."""
    return {**nnunet_folders, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}


def shorten(folders: dict[str, str], dataset: str, plans: str, configuration: str = "3d_fullres") -> None:
    """Make both trainings of a plans file as short as they can be, as a user would: in the file."""
    file = Path(folders["nnUNet_preprocessed"]) / dataset / f"{plans}.json"
    content = json.loads(file.read_text())
    for block in ("ssl", "finetune"):
        content["configurations"][configuration].setdefault(block, {}).update(SHORT)
    file.write_text(json.dumps(content))


def result(
    folders: dict[str, str], dataset: str, trainer: str, plans: str, fold: str, configuration="3d_fullres"
) -> Path:
    return Path(folders["nnUNet_results"]) / dataset / f"{trainer}__{plans}__{configuration}" / f"fold_{fold}"


def test_plan_pretrain_finetune_predict(folders, run_command, tiny_dataset, tmp_path):
    """nnU-Net's own commands on a labelled data set, the pre-training file deleted before predicting; ours: test_tutorials.py."""
    dataset = tiny_dataset(folders["nnUNet_raw"], 900, num_cases=6)
    plans = PLANS["primus"]
    planner = "SSLPlanner" + plans.removeprefix("nnUNetSSL").removesuffix("Plans")
    run_command(["nnUNetv2_extract_fingerprint", "-d", "900", "-np", "1"], folders)
    run_command(["nnUNetv2_plan_experiment", "-d", "900", "-pl", planner], folders)
    run_command(["nnUNetv2_preprocess", "-d", "900", "-plans_name", plans, "-c", "3d_fullres", "-np", "1"], folders)
    shorten(folders, dataset.name, plans)
    train = ["nnUNetv2_train", "900", "3d_fullres"]
    run_command([*train, "all", "-tr", "SSLMAETrainer", "-p", plans, "-device", "cpu"], folders)
    checkpoint = result(folders, dataset.name, "SSLMAETrainer", plans, "all") / "checkpoint_final.pth"
    weights = ["-pretrained_weights", checkpoint]
    model = ["-tr", "SSLFinetuneTrainer", "-p", plans]
    finetuned = run_command([*train, "0", *model, *weights, "-device", "cpu"], folders)
    predict = ["nnUNetv2_predict", "-i", dataset / "imagesTr", "-o", tmp_path / "none", "-d", "900", "-c", "3d_fullres"]
    refused = run_command([*predict, "-tr", "SSLMAETrainer", "-p", plans, "-f", "all"], folders, check=False)
    assert refused.returncode != 0
    assert "segments nothing. Fine-tune it first" in refused.stderr.strip().splitlines()[-1]
    assert "Pre-trained weights" in finetuned.stdout
    assert "Mean Validation Dice" in finetuned.stdout
    folder = result(folders, dataset.name, "SSLFinetuneTrainer", plans, "0")
    assert json.loads((folder / "pretrained_weights.json").read_text())
    checkpoint.unlink()
    images, output = tmp_path / "images", tmp_path / "segmentations"
    images.mkdir()
    shutil.copy(dataset / "imagesTr" / "tiny_00_0000.nii.gz", images)
    where = ["-d", "900", "-c", "3d_fullres", "-f", "0", "-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1"]
    run_command(["nnUNetv2_predict", "-i", images, "-o", output, *model, *where], folders)
    assert (output / "tiny_00.nii.gz").is_file()


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_nnunets_own_plans_and_trainer(configuration, folders, run_command, tiny_dataset, tmp_path):
    """Pre-train on plans nnU-Net made itself, then let its stock trainer load the checkpoint."""
    dataset = tiny_dataset(folders["nnUNet_raw"], 901, num_cases=6)
    options = ["-d", "901", "-c", configuration, "-npfp", "1", "-np", "1"]
    run_command(["nnUNetv2_plan_and_preprocess", *options], folders)
    shorten(folders, dataset.name, "nnUNetPlans", configuration)
    run_command(
        ["nnUNetv2_pretrain", "901", "-p", "nnUNetPlans", "-c", configuration, "--batch-size", "2", "-device", "cpu"],
        folders,
    )
    checkpoint = (
        result(folders, dataset.name, "SSLMAETrainer", "nnUNetPlans", "all", configuration) / "checkpoint_final.pth"
    )
    script = tmp_path / "short_training.py"
    script.write_text(ONE_EPOCH.format(configuration=configuration, checkpoint=str(checkpoint)))
    trained = run_command(["python", script], folders)
    assert "Loading pretrained weights from file" in trained.stdout
    assert "Mean Validation Dice" in trained.stdout


def test_pretrain_again_continues_or_says_what_differs(folders, run_command, tiny_dataset):
    """Nothing is prepared: one command does it all; again it resumes; once more it has nothing to do."""
    tiny_dataset(folders["nnUNet_raw"], 902, num_cases=5, num_labelled=0)
    flags = ["--backbone", "resenc_tiny", "--iterations-per-epoch", "2", "--val-iterations-per-epoch", "1"]
    command = ["nnUNetv2_pretrain", "902", "--method", "mae", *flags, "-np", "1", "-device", "cpu"]
    first = run_command([*command, "--epochs", "1", "--mask-ratio", "0.6", "--seed", "3"], folders)
    plans = result(folders, "Dataset902_Tiny", "SSLMAETrainer", PLANS["resenc"], "all").parent / "plans.json"
    hint = f"nnUNetv2_finetune ID -pretrained_weights {plans.parent / 'fold_all' / 'checkpoint_final.pth'}"
    assert hint in first.stdout
    assert first.stdout.count("The pre-trained network:") == 1
    block = json.loads(plans.read_text())["configurations"]["3d_fullres"]["ssl"]
    assert (block["seed"], block["mae"]["mask_ratio"]) == (3, 0.6)
    again = run_command([*command, "--epochs", "1", "--mask-ratio", "0.6", "--seed", "3"], folders)
    assert "finished" in again.stdout
    assert hint in again.stdout
    # That was a trial; nothing of it is to slip into another run.
    refused = run_command([*command, "--epochs", "2"], folders, check=False)
    assert refused.returncode == 1
    differences = (
        "mae.mask_ratio: 0.6 there, 0.75 asked for; num_epochs: 1 there, 2 asked for; seed: 3 there, 0 asked for"
    )
    assert differences in refused.stderr
    assert "--continue" in refused.stderr
    assert "--run-name" in refused.stderr
    assert "Traceback" not in refused.stderr
    (plans.parent / "fold_all" / "checkpoint_final.pth").rename(plans.parent / "fold_all" / "whole.pth")
    whole = (plans.parent / "fold_all" / "whole.pth").read_bytes()
    (plans.parent / "fold_all" / "checkpoint_final.pth").write_bytes(whole[: len(whole) // 2])
    (plans.parent / "fold_all" / "whole.pth").unlink()
    plans.write_text(plans.read_text()[:100])  # as a kill leaves it
    second = run_command([*command, "--epochs", "2", "--continue"], folders)
    assert "WARNING: Skipped checkpoint_final.pth" in second.stdout
    assert "checkpoint_best.pth" in second.stdout
    assert "mask_ratio=0.6" in second.stdout
    assert json.loads(plans.read_text())["plans_name"] == PLANS["resenc"]
    third = run_command([*command, "--epochs", "2", "--c"], folders)
    assert "finished" in third.stdout
    # Killed after the last epoch: what is missing is done.
    summary = plans.parent / "fold_all" / "validation" / "summary.json"
    summary.unlink()
    run_command([*command, "--epochs", "2", "--c"], folders)
    assert summary.is_file()
    refused = run_command([*command, "--epochs", "3", "--mask-ratio", "0.75", "--c"], folders, check=False)
    assert refused.returncode == 1
    assert "mask_ratio: 0.6 then, 0.75 now" in refused.stderr
    beside = run_command([*command, "--epochs", "1", "--run-name", "seven", "--seed", "7"], folders)
    own = result(folders, "Dataset902_Tiny", "SSLMAETrainer", f"{PLANS['resenc']}_seven", "all")
    assert torch.load(own / "checkpoint_final.pth", weights_only=True)["ssl"]["settings"]["seed"] == 7
    assert "has no labels to learn from" in beside.stdout


def test_several_datasets_and_channels(folders, run_command, tiny_dataset):
    """One corpus of two data sets, one of them with two channels, each channel a sample."""
    tiny_dataset(folders["nnUNet_raw"], 903, num_cases=3)
    tiny_dataset(folders["nnUNet_raw"], 904, num_cases=3, num_labelled=0, channels=2)
    short = ["--epochs", "1", "--iterations-per-epoch", "2", "--val-iterations-per-epoch", "1", "-device", "cpu"]
    done = run_command(["nnUNetv2_pretrain", "903", "904", "--backbone", "primus_tiny", "-np", "1", *short], folders)
    assert "6 images of 6 subjects" in done.stdout
    together = ["nnUNetv2_pretrain", "904", "--channels", "together", "--backbone", "resenc_tiny", "-np", "1"]
    run_command([*together, *short], folders)
    folder = result(folders, "Dataset904_Tiny", "SSLMAETrainer", PLANS["resenc"], "all")
    assert torch.load(folder / "checkpoint_final.pth", weights_only=True)["ssl"]["num_input_channels"] == 2


def test_sigterm_saves_and_the_next_start_continues(folders, run_command, tiny_dataset):
    """A real process, a real signal."""
    tiny_dataset(folders["nnUNet_raw"], 905, num_cases=5)
    command = ["nnUNetv2_pretrain", "905", "--backbone", "resenc_tiny", "--epochs", "1", "-np", "1", "-device", "cpu"]
    command += ["--val-iterations-per-epoch", "1"]
    program = Path(sys.executable).parent / command[0]
    log = Path(folders["nnUNet_results"]) / "output.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [program, *command[1:], "--iterations-per-epoch", "100000"],
            env={"PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1", **folders},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 180
        while "Pre-training" not in log.read_text() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.5)
        time.sleep(3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM, log.read_text()[-3000:]
    assert "SIGTERM received: stopped in epoch 1 after" in log.read_text()
    folder = result(folders, "Dataset905_Tiny", "SSLMAETrainer", PLANS["resenc"], "all")
    checkpoint = torch.load(folder / "checkpoint_latest.pth", weights_only=True)
    done = len(checkpoint["finished_iterations"])
    assert done > 0
    assert checkpoint["current_epoch"] == 0


def test_mistakes_are_answered_with_what_to_type(folders, run_command, tiny_dataset):
    """Through the real command once; tests/unit/test_cli_pretrain.py has the other mistakes."""
    tiny_dataset(folders["nnUNet_raw"], 906, num_cases=2)
    failed = run_command(["nnUNetv2_pretrain", "999", "-device", "cpu"], folders, check=False)
    assert failed.returncode == 1
    assert "There is no dataset 999. Known datasets" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_cuda_without_gpu(folders, run_command, tiny_dataset):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    tiny_dataset(folders["nnUNet_raw"], 907, num_cases=2)
    failed = run_command(["nnUNetv2_pretrain", "907"], folders, check=False)
    assert failed.returncode == 1
    assert "Add -device cpu" in failed.stderr
