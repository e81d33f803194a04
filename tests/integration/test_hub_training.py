"""A model on the hub as -pretrained_weights of nnU-Net's own command, in fresh processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PLANS = "nnUNetSSLPrimusTinyPlans"
SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
REPO = "AnonRes/PrimusM-OpenMind-MAE"

# Two processes as nnUNetv2_train -num_gpus 2 starts them; forked, so that nnU-Net is imported once
TWO_PROCESSES = """
import sys
from pathlib import Path
from torch import distributed as dist
from torch import multiprocessing as mp
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.integration.pretrained_weights import resolve_once_per_machine

def process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = resolve_once_per_machine("AnonRes/PrimusM-OpenMind-MAE")
    Path(folder, f"found_{rank}.txt").write_text(str(found.path))
    try:
        resolve_once_per_machine("AnonRes/PrimusM-OpenMind-MEA")
    except CheckpointError as error:
        Path(folder, f"error_{rank}.txt").write_text(str(error))
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.start_processes(process, args=(sys.argv[1],), nprocs=2, start_method="fork")
"""


@pytest.fixture
def environment(nnunet_folders: dict[str, str], hub_server: Any, tmp_path: Path) -> dict[str, str | None]:
    """nnU-Net's folders, and huggingface_hub turned to the stand-in by its own variables."""
    workers = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    hub = {
        "HF_ENDPOINT": hub_server.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": None,
        "HF_HUB_OFFLINE": None,
    }
    return {**nnunet_folders, **workers, **hub, "HF_HUB_CACHE": None}


def test_stock_training_from_a_hub_id(
    environment: dict[str, str | None], hub_server: Any, run_command: Any, tiny_dataset: Any, tmp_path: Path
) -> None:
    """Pre-train, publish the result on the stand-in, fine-tune from its id; two processes fetch it once."""
    dataset = tiny_dataset(environment["nnUNet_raw"], 911, num_cases=5)
    preparation = ["nnUNetv2_pretrain", "911", "--backbone", "primus_tiny", "-np", "1", "-device", "cpu"]
    short = ["--epochs", "1", "--iterations-per-epoch", "1", "--val-iterations-per-epoch", "1"]
    run_command([*preparation, *short], environment)
    results = Path(str(environment["nnUNet_results"])) / dataset.name
    checkpoint = results / f"SSLMAETrainer__{PLANS}__3d_fullres" / "fold_all" / "checkpoint_final.pth"
    hub_server.add(REPO, {"checkpoint_final.pth": checkpoint.read_bytes(), "config.json": b"{}"}, licence="cc-by-4.0")
    checkpoint.unlink()
    plans = Path(str(environment["nnUNet_preprocessed"])) / dataset.name / f"{PLANS}.json"
    content = json.loads(plans.read_text())
    content["configurations"]["3d_fullres"].setdefault("finetune", {}).update(SHORT)
    plans.write_text(json.dumps(content))
    train = ["nnUNetv2_train", "911", "3d_fullres", "0", "-tr", "SSLFinetuneTrainer", "-p", PLANS, "-device", "cpu"]
    trained = run_command([*train, "-pretrained_weights", REPO], environment)
    assert f"from {REPO}/checkpoint_final.pth, commit {hub_server.repositories[REPO].commit[:12]}" in trained.stdout
    assert "Mean Validation Dice" in trained.stdout
    report = results / f"SSLFinetuneTrainer__{PLANS}__3d_fullres" / "fold_0" / "pretrained_weights.json"
    origin = json.loads(report.read_text())["source_info"]["origin"]
    assert (origin["repo_id"], origin["revision"]) == (REPO, hub_server.repositories[REPO].commit)
    assert origin["licence"] == "cc-by-4.0"
    downloads = len(hub_server.asked("GET /AnonRes"))
    assert downloads == 2
    script = tmp_path / "two_processes.py"
    script.write_text(TWO_PROCESSES)
    run_command(["python", script, tmp_path], {**environment, "HF_HOME": str(tmp_path / "another")})
    assert len(hub_server.asked("GET /AnonRes")) == 2 * downloads  # once for both
    assert (tmp_path / "found_0.txt").read_text() == (tmp_path / "found_1.txt").read_text()
    for rank in (0, 1):
        assert "Did you mean PrimusM-OpenMind-MAE" in (tmp_path / f"error_{rank}.txt").read_text()
