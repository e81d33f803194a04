"""The tutorials of docs/tutorials, typed as they stand there; only networks and schedules are tiny, and the device is the CPU.

A shell runs each block. In front of its PATH lie stand-ins for the commands: `small.py` calls the real entry point in a fresh
process with the planner's preset exchanged, SLURM's programs run what they are given.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tutorial_paths import blocks, paths

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[2]
FOUND = paths()
REPO = "AnonRes/ResEncL-OpenMind-MAE"
SMALL = """
import sys
from dataclasses import replace
from importlib import import_module

OURS = {"pretrain": [], "finetune": [], "pretrain_import": [], "pretrain_corpus": []}
SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}

if __name__ == "__main__":
    program, *arguments = sys.argv[1:]
    name = program.removeprefix("nnUNetv2_")
    if name == "predict":
        from nnunetv2.inference.predict_from_raw_data import predict_entry_point as main
        more = ["-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1"]
    else:
        from nnunet_ssl.planners.presets import RESENC_TINY as tiny
        from nnunet_ssl.planners.ssl_planner import SSLPlannerResEncL
        ssl, finetune = ({**block, **SHORT} for block in (tiny.ssl, tiny.finetune))
        SSLPlannerResEncL.preset = replace(tiny, ssl={**ssl, "batch_size": 2}, finetune=finetune)
        module = {"pretrain_import": "import_corpus", "pretrain_corpus": "corpus"}.get(name, name)
        main = import_module(f"nnunet_ssl.cli.{module}").main
        more = ["-np", "1"] + ["-device", "cpu"] * (name in ("pretrain", "finetune"))
        if name == "finetune" and "-p" not in arguments:
            more += ["--epochs", "1", "--iterations-per-epoch", "1"]
    sys.argv = [program, *arguments, *more]
    main()
"""
SLURM = {
    "sbatch": 'while [[ "$1" != *.slurm ]]; do shift; done; bash "$@"',
    "srun": '"$@"',
    "scontrol": "echo localhost",
    "torchrun": 'while [ "$1" != -m ]; do shift; done; echo "torchrun: ${@:2}"',
}
JOB = {
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_CPUS_PER_TASK": "1",
    "SLURM_JOB_NODELIST": "localhost",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_JOB_ID": "7",
    "SLURM_ARRAY_TASK_ID": "1",
}


@pytest.fixture
def desk(furnished: Path) -> Path:
    """A user's folder, on which nothing has been done yet: what a path prints depends on no other one."""
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        shutil.rmtree(furnished / name)
        (furnished / name).mkdir()
    shutil.rmtree(furnished / "nnUNet_raw" / "Dataset745_MyScans", ignore_errors=True)
    return furnished


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory, tiny_dataset) -> Path:
    """A user's folder: scans, images, nnU-Net's folders with data set 4 in them, and the stand-ins for the commands."""
    desk = tmp_path_factory.mktemp("desk")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "bin", "images", "scans"):
        (desk / name).mkdir()
    dataset = tiny_dataset(desk / "nnUNet_raw", 4, num_cases=6).rename(desk / "nnUNet_raw" / "Dataset004_Hippocampus")
    shutil.copy(dataset / "imagesTr" / "tiny_00_0000.nii.gz", desk / "images" / "new_0000.nii.gz")
    for file in (dataset / "imagesTr").iterdir():
        shutil.copy(file, desk / "scans" / file.name.replace("_0000", ""))
    (desk / "examples").symlink_to(CHECKOUT / "examples")
    (desk / "small.py").write_text(SMALL)
    commands = {
        f"nnUNetv2_{n}": None for n in ("pretrain", "finetune", "pretrain_import", "pretrain_corpus", "predict")
    }
    for name, script in {**commands, **SLURM}.items():
        file = desk / "bin" / name
        small = f'exec {sys.executable} {desk}/small.py {name} "$@"'
        file.write_text(f"#!/bin/bash\n{script or small}\n")
        file.chmod(0o755)
    return desk


def typed(desk: Path, name: str, more: dict[str, str] | None = None) -> str:
    """What the commands of a path print, typed one after the other; each has to succeed."""
    folders = {n: str(desk / n) for n in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    environment = {**os.environ, **folders, "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    environment |= {"PATH": f"{desk / 'bin'}:{os.environ['PATH']}", **(more or {})}
    shutil.rmtree(desk / "segmentations", ignore_errors=True)  # of another path
    command = ["bash", "-euo", "pipefail", "-c", FOUND[name][0]]
    done = subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


DIFFERENT = {  # from run to run, and between the page's run and the smaller one of the test
    r"\d{4}-\d\d-\d\d [\d:.]+: ": "",
    r"nnUNetSSLResEnc(L|Tiny)Plans(_\d\w*?)?(?=__|\W|$)": "PLANS",
    r"SSLPlannerResEnc(L|Tiny)": "PLANNER",
    r"\S*nnUNet_results/": "RESULTS/",
    r"\d+ (s|min \d+ s|h \d+ min)(?=,|$)": "TIME",
    r"\b(epoch|iteration|image|subject|case)s\b": r"\1",
    r"\b(is|are) held": "is held",
    r"\b(bfloat16|float32)\b": "PRECISION",
    r"^(Learned|No better than guessing)": "VERDICT",
    r"-?\d+([.,]\d+)*(e-?\d+)?": "N",
    r"\s+": " ",
}


def shape(line: str) -> str:
    """A line without numbers, times, plural forms, and what the test makes smaller."""
    for pattern, replacement in DIFFERENT.items():
        line = re.sub(pattern, replacement, line)
    return line.strip()


def shown(name: str, printed: str) -> None:
    """Every line of output that the page shows for a path is among those that were printed."""
    there = {shape(line) for line in printed.splitlines()}
    lines = [line for line in FOUND[name][1].splitlines() if line.strip() not in ("", "...")]
    assert [line for line in lines if shape(line) not in there] == [], "\n".join(sorted(there))


def test_a_labelled_data_set(desk: Path) -> None:
    printed = typed(desk, "labelled")
    shown("labelled", printed)
    assert (desk / "segmentations" / "new.nii.gz").is_file()


def test_scans_without_labels(desk: Path) -> None:
    printed = typed(desk, "scans")
    shown("scans", printed)
    assert (desk / "segmentations" / "new.nii.gz").is_file()


def test_public_weights(desk: Path, hub_server, tmp_path: Path) -> None:
    """From a stand-in of the hub: a published file of nnssl's form, of a tiny network."""
    from dynamic_network_architectures.architectures.primus import Primus

    kwargs = {"embed_dim": 36, "patch_embed_size": [8, 8, 8], "eva_depth": 1, "eva_numheads": 2, "init_values": 0.1}
    torch.manual_seed(0)
    network = Primus(1, num_classes=1, input_shape=(32, 32, 32), **kwargs)
    pretraining = {"spacing": [1, 1, 1], "patch_size": [32, 32, 32], "normalization_schemes": ["ZScoreNormalization"]}
    plan = {
        "architecture_plans": {"arch_class_name": "Primus", "arch_kwargs": kwargs, "arch_kwargs_requiring_import": []},
        "pretrain_plan": {"dataset_name": "Dataset745_OpenNeuro_v2", "configurations": {"onemmiso": pretraining}},
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [16, 16, 16],
        "key_to_encoder": "eva",
        "key_to_stem": "down_projection",
        "keys_to_in_proj": ["down_projection.proj"],
        "key_to_lpe": "eva.pos_embed",
    }
    file = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": network.state_dict(), "nnssl_adaptation_plan": plan}, file)
    hub_server.add(REPO, {"checkpoint_final.pth": file.read_bytes()})
    hub = {"HF_ENDPOINT": hub_server.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    first = typed(desk, "public", hub)
    shown("public", first)
    second = typed(desk, "public", hub)  # as after a requeue
    assert "Fold 0 is finished" in second
    assert "Epoch 0" not in second


def test_a_cluster(desk: Path, tmp_path: Path) -> None:
    """The job scripts hand everything on. Training itself is done once, above."""
    file = tmp_path / "nnUNetv2_finetune"  # before that of the desk, which the other paths need
    file.write_text('#!/bin/bash\necho "nnUNetv2_finetune $@"\n')
    file.chmod(0o755)
    printed = typed(desk, "cluster", {**JOB, "PATH": f"{tmp_path}:{desk / 'bin'}:{os.environ['PATH']}"})
    assert "torchrun: nnunet_ssl.pretrain 745 --backbone primus_m" in printed
    assert f"nnUNetv2_finetune 4 -pretrained_weights {REPO} -f 1 -np 1" in printed


def test_every_path_is_tested() -> None:
    assert set(FOUND) == {"labelled", "scans", "public", "cluster", "task"}  # task: test_third_party_method.py
    assert np.all([commands.strip() for commands, _ in FOUND.values()])


def test_the_readme_says_what_the_tutorials_say() -> None:
    """Its two commands are those of the first tutorial, which are typed above."""
    section = (CHECKOUT / "README.md").read_text().split("## Two commands")[1].split("\n## ")[0]
    commands = blocks(section, "bash")
    assert commands.count("nnUNetv2_") == 2
    assert FOUND["labelled"][0].startswith(commands)
