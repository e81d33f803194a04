"""What the doctor says about installations this machine does not have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_ssl.cli import doctor
from nnunet_ssl.integration import nnunet_version

NO_GPU = {"cuda": False, "cuda_build": None, "gpus": [], "bf16": False, "threads": 4}
MISMATCH = "RuntimeError: operator torchvision::nms does not exist"


def test_torchvision_of_another_build_is_one_problem_with_a_cure() -> None:
    (finding,) = doctor.check_imports({"torchvision": MISMATCH, "timm": MISMATCH})
    assert not finding.ok
    assert "--index-url https://download.pytorch.org/whl/cpu" in finding.cure


def test_a_vanished_plugin_that_breaks_torch() -> None:
    (finding,) = doctor.check_imports({"torch": "RuntimeError: Failed to load the backend extension: nnunet_ssl."})
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in finding.cure


def test_other_import_errors_are_shown() -> None:
    (finding,) = doctor.check_imports({"timm": "ImportError: broken"})
    assert finding.what == "import timm fails: ImportError: broken"


@pytest.mark.parametrize(("value", "cure"), [("0", "unset TORCH_DEVICE_BACKEND_AUTOLOAD"), ("1", "pip install")])
def test_inactive_hook(monkeypatch: pytest.MonkeyPatch, value: str, cure: str) -> None:
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", value)
    finding = doctor.check_hook(False)
    assert not finding.ok
    assert cure in finding.cure


@pytest.mark.parametrize(
    ("driver", "build", "ok", "words"),
    [
        (None, None, True, "no GPU: use -device cpu (4 threads)"),
        ("/usr/bin/nvidia-smi", "12.8", False, "torch (built for CUDA 12.8) sees no GPU"),
        ("/usr/bin/nvidia-smi", None, False, "torch (a CPU build) sees no GPU"),
    ],
)
def test_no_gpu(monkeypatch: pytest.MonkeyPatch, driver: str | None, build: str | None, ok: bool, words: str) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: driver)
    (finding,) = doctor.check_device({**NO_GPU, "cuda_build": build})
    assert finding.ok is ok
    assert words in finding.what


def test_gpus() -> None:
    (finding,) = doctor.check_device({**NO_GPU, "cuda": True, "gpus": ["H200", "H200"], "bf16": True})
    assert finding.what == "2 GPU(s), H200, with bf16"


def test_a_timm_newer_than_the_networks_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = doctor.check_bounds()
    assert finding.ok
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "1.0.31" if name == "timm" else real(name))
    (finding,) = doctor.check_bounds()
    assert not finding.ok
    assert finding.what == "timm 1.0.31 is not what dynamic_network_architectures allows (<1.0.23)"
    assert finding.cure == "pip install 'timm<1.0.23'"


def test_old_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"nnunetv2": "2.7.0", "torch": "2.5.1+cu124", "torchvision": "0.20.1"}
    monkeypatch.setattr(doctor, "version", lambda package: installed.get(package, "1.0"))
    problems = [finding for finding in doctor.check_versions() if not finding.ok]
    assert [(p.what, p.cure) for p in problems] == [("nnunetv2 2.7.0", "pip install --upgrade 'nnunetv2>=2.8'")]


def test_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "missing"))
    monkeypatch.delenv("nnUNet_results", raising=False)
    raw, preprocessed, results = doctor.check_folders()
    assert (raw.ok, preprocessed.ok, results.ok) == (True, False, False)
    assert preprocessed.cure == f"mkdir -p {tmp_path / 'missing'}"
    assert results.cure.startswith("export nnUNet_results=")


def test_a_probe_that_dies_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    died = namedtuple("died", "stdout stderr returncode")("", "Segmentation fault", -11)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *args, **kwargs: died)
    (finding,) = doctor.check_fresh_process()
    assert not finding.ok
    assert finding.cure == "Segmentation fault"


@pytest.mark.parametrize(
    ("files", "source", "version", "said"),
    [
        ((), "", "2.8.1", "2.8.1"),
        ((), "", "2.9.0", "2.9.0, newer than tested (2.8.1)"),
        (
            ("experiment_planning/like_nnssl.py",),
            '{"url": "https://github.com/MIC-DKFZ/nnUNet", "vcs_info": {"commit_id": "0e49508612345678"}}',
            "2.8.1",
            "2.8.1, development version (commit 0e49508612), newer than tested (2.8.1)",
        ),
        (
            ("training/dataloading/foreground_locations.py",),
            "",
            "2.8.1",
            "2.8.1, development version, newer than tested (2.8.1)",
        ),
        ((), '{"vcs_info": {"commit_id": "abc"}}', "2.8.0", "2.8.0, not from a package index (commit abc)"),
        ((), "no JSON", "2.8.0", "2.8.0"),
    ],
)
def test_which_nnunet(
    files: tuple[str, ...], source: str, version: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release and the development branch that has its number are told apart by what is in them."""
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    installed = SimpleNamespace(version=version, read_text=lambda name: source)
    monkeypatch.setattr(nnunet_version, "distribution", lambda name: installed)
    monkeypatch.setattr(
        nnunet_version, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    )
    assert nnunet_version.nnunet_version() == said


@pytest.mark.parametrize("command", [["nnunet-ssl", "doctor"], ["nnUNetv2_pretrain_models"]])
def test_nobody_reads_on(command: list[str]) -> None:
    """As in `nnunet-ssl doctor | head -1`, without a traceback."""
    program = [sys.executable, str(Path(sys.executable).parent / command[0]), *command[1:]]
    process = subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    complaint = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=120) == 128 + 13
    assert not complaint
