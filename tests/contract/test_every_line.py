"""A signal at any line of the training loop loses nothing: the run that continues is the one that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ssl.trainers.loop.position import Phase, Position

SCRIPT = Path(__file__).with_name("signalled_at_every_line.py")
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="POSIX signals")


EVERY = os.environ.get("NNUNET_SSL_EVERY_LINE") == "1"  # else some of them, in half a minute


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stride"), [("SIGTERM", 5), ("SIGUSR2", 31)])
def test_signal_at_every_line_of_an_epoch(name, stride, preprocessed_dataset, plans_for, dataset_json, tmp_path):
    number = getattr(signal, name)
    ssl = {"num_epochs": 3, "warmup_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
    job = {
        "plans": plans_for("unet", ssl),
        "dataset_json": dataset_json,
        "scratch": str(tmp_path / "scratch"),
        "report": str(tmp_path / "report.json"),
        "signal": int(number),
        "code": 128 + number,
        "stride": 1 if EVERY else stride,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path / "job.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["wrong"] == []
    assert report["lines"] > 400 / job["stride"]
    assert report["places"] > (5 if name == "SIGTERM" else 1)


def test_where_a_run_stands():
    results = [{"loss": 1.0}, {"loss": 2.0}]
    position = Position()
    assert (position.resume_epoch, position.resume_results) == (0, [])
    position.begin_epoch()
    position.finished += results
    assert (position.resume_epoch, position.resume_results, position.iteration) == (0, results, 2)
    position.phase = Phase.VALIDATION
    assert (position.resume_epoch, position.resume_results, position.iteration) == (0, results, 0)
    position.phase = Phase.ENDED
    assert (position.resume_epoch, position.resume_results) == (1, [])
    position.next_epoch()
    # The first lines of an epoch: nothing is done of it, and nothing is left of the one before.
    assert (position.phase, position.resume_epoch, position.resume_results) == (Phase.TRAINING, 1, [])
    position.resume(4, results, 0.5)
    assert (position.resume_epoch, position.resume_results) == (4, results)
    position.begin_epoch()
    position.finished += results[:1]
    assert position.resume_results == results
