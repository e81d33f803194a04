"""Every door at which files of others name classes, with one hostile file, through the real command in a fresh process."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ssl.checkpoints.doors import DOORS, LOOKUP, NOTHING, doors_table

CHECKOUT = Path(__file__).resolve().parents[3]
EVIL = "evil_module.run"
REFUSALS = {"lookup": "and is something else there", "list": "names from files are never imported"}

pytestmark = pytest.mark.slow


def poison(plans: dict[str, Any]) -> dict[str, Any]:
    """Plans whose activation is a function of a module that lies on the path."""
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            configuration["architecture"]["arch_kwargs"]["nonlin"] = EVIL
    return plans


def hostile_checkpoint(place: Any, trainer: str = "SSLFinetuneTrainer", pretraining: bool = False) -> dict[str, Any]:
    """A checkpoint whose plans name what they must not; `pretraining`: its adaptation plan does as well."""
    checkpoint = place.checkpoint(trainer)
    plans = poison(json.loads(json.dumps(place.plans)))
    checkpoint["init_args"]["plans"] = plans
    if not pretraining:
        return {key: value for key, value in checkpoint.items() if key != "ssl"}
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    kwargs = architecture["arch_kwargs"]
    named = {
        "arch_class_name": "ResidualEncoderUNet",
        "arch_kwargs": kwargs,
        "arch_kwargs_requiring_import": ["nonlin"],
    }
    images = {"configurations": {"onemmiso": {"patch_size": [16, 16, 16], "spacing": [1, 1, 1]}}}
    plan = {"architecture_plans": named, "pretrain_plan": images, "pretrain_num_input_channels": 1}
    return {**checkpoint, "nnssl_adaptation_plan": plan}


def plant_plans(place: Any) -> None:
    place.plans_file.write_text(json.dumps(poison(json.loads(place.plans_file.read_text()))))


def model(place: Any, trainer: str, name: str = "checkpoint_final.pth") -> Path:
    """A model folder with good weights and hostile plans."""
    folder = place.model(trainer)
    checkpoint = {key: value for key, value in place.checkpoint(trainer).items() if key != "ssl"}
    torch.save(checkpoint, folder / "fold_0" / name)
    (folder / "plans.json").write_text(json.dumps(poison(json.loads(json.dumps(place.plans)))))
    return folder


def export_model(place: Any, work: Path) -> list[Any]:
    return ["nnUNetv2_pretrain_export", model(place, "SSLFinetuneTrainer"), "-o", work / "out"]


def checkpoint_file(place: Any, work: Path, pretraining: bool = True) -> Path:
    torch.save(hostile_checkpoint(place, "SSLMAETrainer", pretraining), work / "weights.pth")
    return work / "weights.pth"


def resume_finetuning(place: Any, _: Path) -> list[Any]:
    torch.save(hostile_checkpoint(place), place.model("SSLFinetuneTrainer") / "fold_0" / "checkpoint_latest.pth")
    return place.train("SSLFinetuneTrainer", "--c")


def predict(place: Any, work: Path) -> list[Any]:
    model(place, "SSLFinetuneTrainer")
    return place.predict(work, "SSLFinetuneTrainer")


def resume_pretraining(place: Any, _: Path) -> list[Any]:
    folder = model(place, "SSLMAETrainer", "checkpoint_latest.pth")
    folder.joinpath("fold_0").rename(folder / "fold_all")
    return pretrain_command("--continue")  # or it would be refused for its other settings


def pretrain_command(*more: str) -> list[str]:
    short = ["--epochs", "1", "--iterations-per-epoch", "1", "--val-iterations-per-epoch", "1", "-np", "1"]
    return ["nnUNetv2_pretrain", "930", "-p", "nnUNetSSLResEncTinyPlans", "-device", "cpu", *short, *more]


def preprocess(place: Any, _: Path) -> list[Any]:
    plans = json.loads(place.plans_file.read_text())
    plans["image_reader_writer"] = "recursive_find_python_class"
    place.plans_file.write_text(json.dumps(plans))
    named = ["-plans_name", "nnUNetSSLResEncTinyPlans", "-c", "3d_fullres", "-np", "1"]
    return ["nnUNetv2_preprocess", "-d", "930", *named]


def corpus(place: Any, _: Path) -> list[Any]:
    file = place.raw / "dataset.json"
    content = {**json.loads(file.read_text()), "overwrite_image_reader_writer": "recursive_find_python_class"}
    file.write_text(json.dumps(content))
    return ["nnUNetv2_pretrain_corpus", "-d", "930", "-np", "1"]


COMMANDS: dict[str, Callable[[Any, Path], list[Any]]] = {
    "export a model": export_model,
    "export a file": lambda p, w: ["nnUNetv2_pretrain_export", checkpoint_file(p, w), "-o", w / "out"],
    "info": lambda p, w: ["nnUNetv2_pretrain_info", checkpoint_file(p, w)],
    "plan a fine-tuning": lambda p, w: [
        *("nnUNetv2_plan_finetune", "-d", "930", "-np", "1", "-pretrained_weights"),
        checkpoint_file(p, w),
    ],
    "features": lambda p, w: [
        *("nnUNetv2_extract_features", "-d", "930", "-device", "cpu", "-np", "0", "-o", w / "features.csv"),
        *("-pretrained_weights", checkpoint_file(p, w)),
    ],
    "pre-trained weights": lambda p, w: p.train("SSLFinetuneTrainer", "-pretrained_weights", checkpoint_file(p, w)),
    "fine-tune": lambda p, w: (plant_plans(p), p.train("SSLScratchTrainer"))[1],
    "resume a fine-tuning": resume_finetuning,
    "predict": predict,
    "pre-train": lambda p, w: (plant_plans(p), pretrain_command())[1],
    "resume a pre-training": resume_pretraining,
    "third-party method": lambda p, w: (plant_plans(p), pretrain_command("--method", "denoising"))[1],
    "estimate": lambda p, w: (plant_plans(p), pretrain_command("--estimate"))[1],
    "benchmark": lambda p, w: (
        plant_plans(p),
        [
            *("nnUNetv2_pretrain_benchmark", "930", "-p", "nnUNetSSLResEncTinyPlans"),
            *("-device", "cpu", "--iterations", "5", "--warmup", "1"),
        ],
    )[1],
    "preprocess": preprocess,
    "corpus": corpus,
}


@pytest.fixture(scope="session")
def denoising(tmp_path_factory, run_command) -> str:
    """A folder with the example method of another package, installed."""
    folder = tmp_path_factory.mktemp("denoising")
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    shutil.copytree(CHECKOUT / "examples" / "denoising", folder / "source", ignore=ignored)
    build = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
    run_command(["python", "-c", build], cwd=folder / "source")
    with zipfile.ZipFile(next((folder / "source" / "dist").glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return str(folder / "site")


@pytest.fixture
def environment(place, tmp_path, denoising) -> dict[str, str]:
    """nnU-Net's folders, and a module on the path that tells when it is imported."""
    (tmp_path / "evil").mkdir()
    witness = f"open({str(tmp_path / 'exploded')!r}, 'w').close()"
    (tmp_path / "evil" / "evil_module.py").write_text(f"{witness}\ndef run(**_): pass\n")
    path = os.pathsep.join([str(tmp_path / "evil"), denoising, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**place.folders, "PYTHONPATH": path, "NNUNET_SSL_TRACEBACK": "1"}


def test_every_door_is_tested() -> None:
    assert list(COMMANDS) == [door.name for door in DOORS]


def test_the_documentation_lists_every_door() -> None:
    assert doors_table() in (CHECKOUT / "docs" / "reliability.md").read_text()


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_what_a_file_names_is_never_imported(door, place, environment, run_command, tmp_path):
    command = COMMANDS[door.name](place, tmp_path)
    result = run_command(command, environment, check=False, timeout=150)
    assert not (tmp_path / "exploded").exists()
    if door.checked_by == NOTHING:
        return  # it goes on with the network it has
    refusal = REFUSALS["lookup" if door.checked_by == LOOKUP else "list"]
    assert refusal in result.stdout + result.stderr, result.stderr[-3000:]
    assert (result.returncode == 0) == (door.name == "info")  # which tells, and uses nothing


def test_stock_trainers_say_what_plans_name_and_refuse_where_asked(place, environment, run_command, tmp_path):
    model(place, "nnUNetTrainer")
    command = place.predict(tmp_path, "nnUNetTrainer")
    refused = run_command(command, {**environment, "NNUNET_SSL_REFUSE_UNSAFE": "1"}, check=False)
    assert REFUSALS["list"] in refused.stderr
    assert not (tmp_path / "exploded").exists()
    warned = run_command(command, environment, check=False)
    assert warned.stderr.count("WARNING: nnU-Net imports and calls what its plans name") == 1
