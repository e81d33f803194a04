"""Every damaged or forged checkpoint is loaded cleanly or refused cleanly, and nothing else happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("fuzz_checkpoints.py")
GROWTH = 300  # MiB of memory beyond what the process had after the first file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a file that takes too long is stopped by SIGALRM")


def run(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """The outcomes of `count` bad files, in a process of its own with an empty working folder."""
    folder.mkdir()
    command = [sys.executable, "-X", "faulthandler", str(PROGRAM), str(folder), str(count), str(seed)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=1800)
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return json.loads(result.stdout.splitlines()[-1])


def check(result: dict[str, Any], count: int) -> None:
    assert all(set(outcomes) == {"loaded"} for outcomes in result["unchanged"].values()), result["unchanged"]
    assert not result["failed"], f"{result['failed']} of {count}:\n" + "\n".join(result["failures"])
    assert result["differences"] == 0
    assert sum(result["outcomes"].values()) == count
    assert result["written"] == [], "something was written beside the file"
    assert result["growth"] < GROWTH, f"memory grew by {result['growth']} MiB"
    for outcome in ("loaded", "refused on reading", "refused on adapting"):  # the changes reach every stage
        assert result["outcomes"].get(outcome, 0) > count / 50, result["outcomes"]


def test_two_thousand_bad_files(tmp_path: Path) -> None:
    check(run(tmp_path / "cases", 2000, 1), 2000)


@pytest.mark.slow
def test_many_more_bad_files(tmp_path: Path) -> None:
    check(run(tmp_path / "cases", 5000, 2), 5000)
