"""nnUNetv2_pretrain_compare in fresh processes: interrupted, shared by two processes, one cell alone, the page made anew."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PRETRAINED = "Dataset900_Tiny/SSLMAETrainer__nnUNetSSLPrimusTinyPlans__3d_fullres/fold_all/checkpoint_final.pth"


@pytest.fixture
def weights(tiny_dataset, nnunet_folders, run_command) -> Path:
    """A checkpoint of a pre-training of two iterations on the data set that is compared on, whose environment is set."""
    tiny_dataset(nnunet_folders["nnUNet_raw"], num_cases=6)
    nnunet_folders.update(nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1", PYTHONUNBUFFERED="1")
    run_command(
        ["nnUNetv2_pretrain", "900", "--backbone", "primus_tiny", "--epochs", "1", "--iterations-per-epoch", "2"]
        + ["--val-iterations-per-epoch", "1", "--patch-size", "16", "-np", "1", "-device", "cpu"],
        nnunet_folders,
    )
    return Path(nnunet_folders["nnUNet_results"], PRETRAINED)


def started(arguments, environment):
    """The command in a process of its own."""
    program = Path(sys.executable).parent / "nnunet-ssl"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **environment}
    return subprocess.Popen(
        [program, "nnUNetv2_pretrain_compare", *map(str, arguments)],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_line(file: Path, line: str, process) -> None:
    end = time.monotonic() + 240
    while not (file.exists() and line in file.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_each_cell_once_whatever_happens(weights, nnunet_folders, run_command, tmp_path):
    """Two arms with the same weights. One is interrupted and continued, beside a process that has the other one's number alone:
    both are trained once, and have the same scores."""
    out = tmp_path / "out"
    typed = ["900", "-pretrained_weights", f"a={weights}", f"b={weights}", "--no-scratch", "--labelled", "2", "-o", out]
    typed += [
        "-p",
        "nnUNetSSLPrimusTinyPlans",
        "--epochs",
        "3",
        "--iterations-per-epoch",
        "3",
        "-np",
        "1",
        "-device",
        "cpu",
    ]
    cells = [out / "cells" / "Dataset900_Tiny" / arm / "labelled_2" / "fold_0" / "seed_0" for arm in "ab"]

    first = started(typed, nnunet_folders)
    wait_for_line(cells[0] / "log.txt", "Epoch 1", first)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=120)[0]
    assert first.returncode == 128 + signal.SIGTERM, said
    assert "stopped by SIGTERM" in said
    assert json.loads((cells[0] / "cell.json").read_text())["state"] == "running"
    listed = run_command(["nnunet-ssl", "nnUNetv2_pretrain_compare", "-o", out, "--list"], nnunet_folders).stdout
    assert "2 cells: 1 interrupted, 1 waiting" in listed

    both = [started(["-o", out, "-device", "cpu", *more], nnunet_folders) for more in ([], ["--run", "1"])]
    ends = [process.communicate(timeout=400)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    logs = [(cell / "log.txt").read_text() for cell in cells]
    assert [(log.count("Fold 0 begins"), log.count("Fold 0 goes on")) for log in logs] == [(1, 1), (1, 0)]
    assert [log.count("Training done") for log in logs] == [1, 1]
    records = [json.loads((cell / "cell.json").read_text()) for cell in cells]
    assert [record["state"] for record in records] == ["finished", "finished"]
    assert records[0]["curve"] == records[1]["curve"]
    assert len(records[0]["training_cases"]) == 2
    assert not set(records[0]["training_cases"]) & set(records[0]["test_cases"])
    assert any("those tested on among them" in warning for warning in records[0]["warnings"])

    with open(out / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [[(r["case"], r["metric"], r["value"]) for r in rows if r["arm"] == arm] for arm in "ab"]
    assert scores[0] == scores[1]
    assert {metric for _, metric, _ in scores[0]} == {"Dice", "NSD"}
    assert {case for case, _, _ in scores[0]} == set(records[0]["test_cases"])
    assert sorted(f.name for f in (cells[0] / "predictions").iterdir()) == [
        f"{c}.nii.gz" for c in records[0]["test_cases"]
    ]
    assert not (cells[0] / "training" / "results").exists()

    page = out / "comparison.html"
    content = (out / "scores.csv").read_bytes()
    for file in (page, out / "scores.csv", out / "summary.json"):
        file.unlink()
    run_command(["nnunet-ssl", "nnUNetv2_pretrain_compare", "-o", out, "--report"], nnunet_folders)
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert (out / "scores.csv").read_bytes() == content
