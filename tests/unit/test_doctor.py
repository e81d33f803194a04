"""What the doctor says about installations this machine does not have."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from nnunet_ssl.cli import doctor

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
