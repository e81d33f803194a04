"""What nnU-Net's development branch announces, applied to the installed nnU-Net: everything of ours goes on working.

`python tests/compat/coming.py CHANGE ...` runs any command with a change.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import find_free_network_port
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ssl.trainers.finetuning import SSLScratchTrainer
from nnunet_ssl.trainers.launch import output_folder
from nnunet_ssl.trainers.pretraining import SSLMAETrainer

HERE = Path(__file__).resolve().parent
COMING, TRAINED_BY_MANY = str(HERE / "coming.py"), str(HERE.parent / "contract" / "trained_by_many.py")


@pytest.mark.slow
def test_two_nodes_write_once_and_split_together(preprocessed_dataset, plans_for, dataset_json, tmp_path):
    """Two processes that are the first of their nodes pre-train a fold of nnU-Net's; all changes at once."""
    plans = plans_for("unet", {"num_epochs": 1, "warmup_epochs": 0, "num_val_iterations_per_epoch": 1})
    fields = {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": dataset_json}
    job = {"deed": None, "once": None, "fields": {**fields, "method": "mae", "device": "cpu"}}
    (tmp_path / "job.json").write_text(json.dumps(job))
    node = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    node |= {"MASTER_PORT": str(find_free_network_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, COMING, "all", "-", TRAINED_BY_MANY, str(tmp_path / "job.json")]
    logs, nodes = [tmp_path / "0.txt", tmp_path / "1.txt"], []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            environment = {**os.environ, **node, "RANK": str(rank)}
            nodes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=300) for process in nodes]
    finally:
        for process in nodes:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(log.read_text()[-6000:] for log in logs)
    folder = Path(output_folder("mae", plans, "3d_fullres", 0))
    assert len(list(folder.glob("training_log*.txt"))) == 1
    assert "Validation complete" in logs[0].read_text()
    assert "Epoch" not in logs[1].read_text()
    assert torch.load(folder / "checkpoint_final.pth", weights_only=True)["current_epoch"] == 1


@pytest.mark.slow
def test_nnunets_own_loop_trains_and_stops(preprocessed_dataset, plans_for, dataset_json, tmp_path):
    """Fine-tuning trainers live in nnU-Net's loop: a signal saves at once, and what was learned is there."""
    plans = {**plans_for("unet"), "continue_training": False}
    (tmp_path / "job.json").write_text(json.dumps({"plans": plans, "dataset_json": dataset_json}))
    command = [sys.executable, COMING, "all", "-", str(HERE / "stopped_training.py"), str(tmp_path / "job.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "nnUNet_compile": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 128 + signal.SIGUSR1, result.stdout[-3000:] + result.stderr[-3000:]
    assert "SIGUSR1 received: stopped in epoch 1" in result.stdout
    (latest,) = (tmp_path / "results").rglob("checkpoint_latest.pth")
    assert torch.load(latest, weights_only=False)["current_epoch"] == 1


@pytest.mark.parametrize("trainer_class", [SSLMAETrainer, SSLScratchTrainer])
def test_signals_stay_ours(trainer_class, make_trainer, plans_for, monkeypatch):
    """nnU-Net puts a handler of its own in place when an epoch begins."""
    trainer = make_trainer(trainer_class, plans_for("unet"))
    trainer.initialize()
    begin = nnUNetTrainer.on_train_epoch_start

    def on_train_epoch_start(self):
        signal.signal(signal.SIGUSR1, lambda *_: None)
        begin(self)

    monkeypatch.setattr(nnUNetTrainer, "on_train_epoch_start", on_train_epoch_start)
    trainer.interruption.listen()
    try:
        trainer.on_train_epoch_start()
        signal.raise_signal(signal.SIGUSR1)
        assert trainer.interruption.requested is signal.SIGUSR1
    finally:
        trainer.interruption.ignore()
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_no_first_process_of_a_node_writes_for_all():
    """`local_rank` will count within the node: who asks whether it is 0 writes once per node."""
    trainers = HERE.parents[1] / "trainers"
    asking = [p for p in trainers.rglob("*.py") if re.search(r"\.local_rank\b", p.read_text())]
    assert not asking, "nnunet_ssl.integration.versions.is_first says which process writes"
