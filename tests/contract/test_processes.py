"""Several processes, talking through gloo: the same result as one, one error that says why, and no work lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import find_free_network_port
from torch import distributed as dist

from nnunet_ssl.errors import TrainingError
from nnunet_ssl.trainers.distributed.processes import Consensus
from nnunet_ssl.trainers.launch import Run, launch, output_folder
from nnunet_ssl.trainers.pretraining import SSLMAETrainer

sys.path.insert(0, str(Path(__file__).parent))  # child processes import it by name as well
import trained_by_many

SGD = {
    "optimizer": "sgd",
    "initial_lr": 1e-2,
    "grad_clip": 12.0,  # SimCLR's own would leave nothing to compare
    "num_epochs": 2,
    "batch_size": 4,
}  # AdamW blows up the smallest difference

FAST = {"self_distillation": {"momentum": 0.5}}  # a teacher that moves as far as its student does


@pytest.fixture
def trained(in_processes, plans_for, tmp_path):
    """Results of one process, of two, and of four with the batch in one piece; of two with it in two parts."""
    cases = {
        "mae-unet": ("mae", plans_for("unet", SGD)),
        "mae-unet" + trained_by_many.FINISHED_ON_DEVICE: ("mae", plans_for("unet", SGD)),
        "mae-primus": ("mae", plans_for("primus", SGD)),
        "simclr-primus": ("simclr", plans_for("primus", SGD)),
        "swin_unetr-unet": ("swin_unetr", plans_for("unet", SGD)),
        "self_distillation-unet": ("self_distillation", plans_for("unet", {**SGD, **FAST})),
    }

    def run(world, names):
        in_processes(trained_by_many.train_in_float32, world, {n: cases[n] for n in names})
        return torch.load(tmp_path / f"{world}.pt")

    return run


@pytest.mark.slow
def test_processes_train_what_one_trains(trained):
    on_device = "mae-unet" + trained_by_many.FINISHED_ON_DEVICE
    names = ["mae-unet", on_device, "mae-primus", "simclr-primus", "swin_unetr-unet", "self_distillation-unet"]
    alone, two, four = trained(1, names), trained(2, names), trained(4, names[:3])
    assert alone[on_device][2] == pytest.approx(alone["mae-unet"][2], rel=1e-4)
    for found in (two, four):
        for name, (_, weights, losses) in found.items():
            start, expected, expected_losses = alone[name]
            assert losses == pytest.approx(expected_losses, rel=1e-4), name
            moved = max((expected[k] - start[k]).abs().max() for k in expected)
            apart = max((expected[k] - weights[k]).abs().max() for k in expected)
            assert moved > 1e-3, name
            assert apart < 2e-3 * moved, (name, apart, moved)


@pytest.mark.slow
def test_held_out_cases_are_shared_and_all_leave_together(in_processes, plans_for, tmp_path):
    cases = {
        "mae-unet": ("mae", plans_for("unet"), 5),
        "mae-primus": ("mae", plans_for("primus"), 1),  # nothing is left for the second process
        "simclr-primus": ("simclr", plans_for("primus"), 3),
        "volume_fusion-unet": ("volume_fusion", plans_for("unet"), 4),
    }
    for world in (1, 2):
        in_processes(trained_by_many.validate, world, cases)
    for name, (_, _, held_out) in cases.items():
        alone, two = tmp_path / f"1_{name}", tmp_path / f"2_{name}"
        seen = [json.loads((two / f"{rank}.json").read_text()) for rank in (0, 1)]
        everything = json.loads((alone / "0.json").read_text())["seen"]
        assert len(everything) == held_out
        assert [own["seen"] for own in seen] == [everything[::2], everything[1::2]], name
        assert all(own["written"] for own in seen), name
        files = [sorted(p.name for p in (folder / "validation").iterdir()) for folder in (alone, two)]
        assert len(files[0]) == held_out + 1
        assert files[0] == files[1]
        for file in files[0]:
            assert (alone / "validation" / file).read_bytes() == (two / "validation" / file).read_bytes(), (name, file)


@pytest.mark.slow
def test_one_of_two_is_asked_to_stop_and_both_save_resume_and_write_once(preprocessed_dataset, plans_for, dataset_json):
    """Two epochs; the second process gets SIGTERM in the second. The rest goes through the networks in two parts."""
    ssl = {"num_epochs": 2, "warmup_epochs": 0, "batch_size": 4, "num_iterations_per_epoch": 4}
    fields = {
        "configuration": "3d_fullres",
        "fold": "all",
        "dataset_json": dataset_json,
        "method": "mae",
        "device": "cpu",
    }
    run = trained_by_many.SabotagedRun(plans=plans_for("unet", ssl), **deepcopy(fields))
    run.__dict__["deed"] = "stop"
    with pytest.raises(SystemExit) as code:
        launch(run, num_processes=2)
    assert code.value.code == 128 + 15
    folder = Path(output_folder("mae", plans_for("unet"), "3d_fullres", "all"))
    stopped = torch.load(folder / "checkpoint_latest.pth", weights_only=True)
    assert (stopped["current_epoch"], len(stopped["finished_iterations"])) == (1, 2)  # one later than asked
    launch(Run(plans=plans_for("unet", {**ssl, "accumulate": 2}), **fields), num_processes=2)
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["current_epoch"] == 2
    assert len(checkpoint["logging"]["train_losses"]) == 2
    assert not any(key.startswith("module.") for key in checkpoint["network_weights"])
    assert len(list(folder.glob("training_log*.txt"))) == 2
    assert (folder / "validation" / "summary.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("raise", r"(?s)Process 1 failed.*train_step.*ValueError: the second process has had enough"),
        ("kill", r"Process 1 was killed by SIGKILL.*same command continues"),
    ],
)
def test_process_that_fails_ends_the_job_with_its_own_error(
    deed, message, preprocessed_dataset, plans_for, dataset_json
):
    plans = plans_for("unet", {"num_epochs": 2, "warmup_epochs": 0, "num_val_iterations_per_epoch": 1})
    run = trained_by_many.SabotagedRun(plans, "3d_fullres", "all", dataset_json, "mae", "cpu")
    run.__dict__["deed"] = deed
    with pytest.raises(RuntimeError, match=message):
        launch(run, num_processes=2)


@pytest.mark.slow
def test_what_a_user_can_mend_arrives_as_its_line_from_another_process(preprocessed_dataset, plans_for, dataset_json):
    run = Run(plans_for("unet", {"seed": "first"}), "3d_fullres", "all", dataset_json, "mae", "cpu")
    with pytest.raises(
        TrainingError, match=r"^Process [01]: plans.*\[\"ssl\"\]: seed must be a whole number >= 0, found 'first'\.$"
    ):
        launch(run, num_processes=2)


@pytest.mark.slow
def test_two_nodes_go_on_when_a_process_is_killed(preprocessed_dataset, plans_for, dataset_json, tmp_path):
    """Two torchrun agents as two nodes on 127.0.0.1; --max-restarts continues from the last checkpoint."""
    plans = plans_for("primus", {"num_epochs": 2, "warmup_epochs": 0, "num_val_iterations_per_epoch": 1})
    fields = {"plans": plans, "configuration": "3d_fullres", "fold": "all", "dataset_json": dataset_json}
    job = {"deed": "kill", "once": str(tmp_path / "killed"), "fields": {**fields, "method": "mae", "device": "cpu"}}
    (tmp_path / "run.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{find_free_network_port()}"]
    command += ["--max-restarts", "3", trained_by_many.__file__, str(tmp_path / "run.json")]
    # Else the processes of a new start can read where those of the old one listened, and fail as well: docs/scaling.md.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    logs = [tmp_path / "first.txt", tmp_path / "second.txt"]  # files: nobody would empty the second one's pipe
    agents = []
    for log in logs:
        with log.open("w") as file:
            agents.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
    try:
        codes = [agent.wait(timeout=300) for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()  # an agent that is killed leaves its processes behind
        for agent in agents:
            agent.wait(timeout=60)
    assert codes == [0, 0], "\n".join(log.read_text()[-6000:] for log in logs)
    assert (tmp_path / "killed").exists()
    folder = Path(output_folder("mae", plans, "3d_fullres", "all"))
    assert torch.load(folder / "checkpoint_final.pth", weights_only=True)["current_epoch"] == 2
    assert any("Continuing from" in log.read_text() for log in folder.glob("training_log*.txt"))


def test_batch_that_cannot_be_shared_is_refused(make_trainer, plans_for, monkeypatch):
    trainer = make_trainer(SSLMAETrainer, plans_for("unet", {"batch_size": 3}))
    trainer.is_ddp = True
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="--batch-size 4"):
        trainer._set_batch_size_and_oversample()


def test_processes_that_see_other_checkpoints_are_refused(monkeypatch):
    """Nodes without a common file system: one finds the checkpoint of epoch 7, the other one nothing."""

    def all_gather(places, own, group):
        places[0].copy_(own)
        places[1].copy_(torch.tensor([0, 0]))

    monkeypatch.setattr(dist, "new_group", lambda backend: "a group")
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    with pytest.raises(
        RuntimeError, match=r"epoch 1 iteration 1, epoch 8 iteration 3.*file system that all nodes share"
    ):
        Consensus(several=True).check_start(7, 2, "/results")


def test_alone_a_process_stops_at_once():
    together = Consensus(several=False)
    assert together.agreed(None) is None
    assert together.agreed(15) == 15
