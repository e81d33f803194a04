"""Signals to whole process groups, through the real commands; tests/drills/kills.py does it at random, 200 times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nnunet_ssl.trainers.loop.interruption import FINISH_EPOCH

DRILL = Path(__file__).parents[1] / "drills" / "kills.py"
PLANS = "nnUNetSSLResEncTinyPlans"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes as on Linux"),
]


def test_groups_are_killed_in_every_phase_and_the_runs_end_as_undisturbed_ones(tmp_path):
    """One process, two, and two under torchrun; weights, optimiser, log and validation are compared bit by bit."""
    plans = ["group:preprocessing-INT,writing-TERM,training-KILL,validation-INT"]
    plans += ["several:training-INT,training-USR1", "torchrun:training-TERM"]
    command = [sys.executable, str(DRILL), str(tmp_path / "drill"), "--epochs", "3", "--plan", *plans]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "3 runs ended bit by bit as the undisturbed one" in done.stdout


@pytest.fixture
def start(nnunet_folders, tmp_path):
    """Function (command) -> (process in a group of its own, file of its output)."""
    started = []

    def begin(*command: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = tmp_path / f"output_{len(started)}.txt"
        own = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "nnUNet_n_proc_DA": "2", "PYTHONWARNINGS": "ignore"}
        with log.open("wb") as file:
            process = subprocess.Popen(
                [str(Path(sys.executable).parent / command[0]), *command[1:]],
                env={**os.environ, **own, **nnunet_folders, "NNUNET_SSL_DRILL": str(tmp_path)},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process, log

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def members(mark: str) -> list[int]:
    """Processes that were started by this test and live."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            alive = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if alive and f"NNUNET_SSL_DRILL={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(int(pid))
        except OSError:
            pass
    return found


def wait_until(holds, seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(holds())


def set_up(folders, run_command, tiny_dataset) -> None:
    """A data set that is ready for pre-training and fine-tuning, in long epochs."""
    tiny_dataset(folders["nnUNet_raw"], 931, num_cases=6)
    run_command(["nnUNetv2_pretrain", "931", "--backbone", "resenc_tiny", "--preprocess-only", "-np", "1"], folders)
    file = Path(folders["nnUNet_preprocessed"]) / "Dataset931_Tiny" / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    short = {"num_epochs": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}
    configuration = plans["configurations"]["3d_fullres"]
    configuration["ssl"].update(short, num_iterations_per_epoch=20)
    configuration["finetune"] = {**short, "num_iterations_per_epoch": 10**6}
    del configuration["finetune"]["batch_size"]
    configuration["batch_size"] = 2
    file.write_text(json.dumps(plans))


def test_nnunets_own_command_stops_the_same_way(nnunet_folders, run_command, tiny_dataset, start, tmp_path):
    """Ctrl-C and FINISH_EPOCH in pre-training, SIGTERM and `kill -9` to the group in fine-tuning with nnU-Net's processes."""
    set_up(nnunet_folders, run_command, tiny_dataset)
    results = Path(nnunet_folders["nnUNet_results"]) / "Dataset931_Tiny"
    train = ["nnUNetv2_train", "931", "3d_fullres"]
    mae = [*train, "all", "-tr", "SSLMAETrainer", "-p", PLANS, "-device", "cpu"]
    process, log = start(*mae)
    assert wait_until(lambda: "Pre-training" in log.read_text())
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    output = log.read_text()
    assert "SIGINT received: stopped in epoch 1 after" in output
    assert "Traceback" not in output
    folder = results / f"SSLMAETrainer__{PLANS}__3d_fullres" / "fold_all"
    assert torch.load(folder / "checkpoint_latest.pth", weights_only=True)["current_epoch"] == 0
    (folder / FINISH_EPOCH).touch()
    process, log = start(*mae, "--c")
    assert process.wait(120) == 140, log.read_text()[-3000:]
    assert "FINISH_EPOCH found: stopped after 1 of 2 epochs" in log.read_text()
    assert not (folder / FINISH_EPOCH).exists()
    process, log = start(*mae, "--c")
    assert process.wait(180) == 0, log.read_text()[-3000:]
    assert (folder / "validation" / "summary.json").exists()
    assert f"nnUNetv2_finetune 931 -p {PLANS} -c 3d_fullres -pretrained_weights {folder}" in log.read_text()
    assert sorted(p.name for p in folder.iterdir() if "lock" in p.name or p.name.startswith(".")) == []

    process, log = start(*train, "0", "-tr", "SSLScratchTrainer", "-p", PLANS, "-device", "cpu")
    assert wait_until(lambda: "Epoch 0" in log.read_text())
    time.sleep(2)
    assert len(members(str(tmp_path))) > 2  # the augmenting processes are there
    second = run_command(
        [*train, "0", "-tr", "SSLScratchTrainer", "-p", PLANS, "-device", "cpu"], nnunet_folders, check=False
    )
    assert second.returncode != 0
    assert "is in use by process" in second.stderr
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143
    output = log.read_text()
    assert "SIGTERM received: stopped in epoch 0, saved in" in output
    assert "Traceback" not in output
    assert wait_until(lambda: not members(str(tmp_path)), 20)
    process, log = start(*train, "0", "-tr", "SSLScratchTrainer", "-p", PLANS, "-device", "cpu", "--c")
    assert wait_until(lambda: "Epoch 0" in log.read_text())
    time.sleep(1)
    process.kill()  # this one alone: who reads for it has to notice
    process.wait()
    assert wait_until(lambda: not members(str(tmp_path)), 20)
