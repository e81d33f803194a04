"""Folders that are full, read-only or not there: found before the work, and said in one line."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ssl.errors import CannotWrite
from nnunet_ssl.files.folders import existing, explaining, is_writable, require_writable
from nnunet_ssl.files.unwritable import explanation
from nnunet_ssl.messages import one_line
from nnunet_ssl.report import attempt
from nnunet_ssl.report.attempt import attempt_to_draw

READ_ONLY = """
import sys
from nnunet_ssl.files.folders import require_writable
require_writable(sys.argv[1])
"""


def run_bound(code: str, *args: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """A fresh process that permissions bind, also where this user is root, with a limit on the size of files."""

    def before() -> None:
        import ctypes
        import resource

        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=before)


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    require_writable(tmp_path, tmp_path / "not" / "there" / "yet")
    assert is_writable(tmp_path)
    assert os.listdir(tmp_path) == []
    assert existing(tmp_path / "not" / "there") == tmp_path


def test_a_read_only_folder_is_named_with_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    done = run_bound(READ_ONLY, folder / "Dataset004_X")
    folder.chmod(0o700)
    message = done.stderr.strip().splitlines()[-1]
    assert "CannotWrite" in message, done.stderr
    assert f"The folder {folder} must be writable" in message


def test_a_full_disk_is_found_although_it_takes_a_name(tmp_path: Path) -> None:
    done = run_bound(READ_ONLY, tmp_path, limit=100)
    assert "bytes free" in done.stderr.strip().splitlines()[-1], done.stderr
    assert os.listdir(tmp_path) == []


def test_a_library_that_hides_the_reason_is_seen_through(tmp_path: Path) -> None:
    code = """
import sys
from nnunet_ssl.files.folders import explaining
with explaining(sys.argv[1]):
    raise RuntimeError("Error while creating the NDArray")
"""
    assert "bytes free" in run_bound(code, tmp_path, limit=1000).stderr.strip().splitlines()[-1]
    assert run_bound(code, tmp_path).stderr.strip().splitlines()[-1].startswith("RuntimeError")


def test_errors_about_other_things_stay_what_they_are(tmp_path: Path) -> None:
    def read_what_is_missing() -> None:
        with explaining(tmp_path):
            (tmp_path / "missing").read_bytes()

    with pytest.raises(FileNotFoundError) as caught:
        read_what_is_missing()
    assert explanation(caught.value) is None
    assert explanation(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "unreadable"))) is None
    assert explanation(ValueError("x")) is None


def test_an_error_of_a_library_names_the_folder_or_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    named = explanation(OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x")))
    assert named is not None
    assert f"The folder {tmp_path} has " in named
    assert "point nnUNet_raw to another disk" in named
    unnamed = one_line(OSError(errno.ENOSPC, "No space left on device"))
    assert unnamed is not None
    assert f"nnUNet_raw ({tmp_path}) has " in unnamed


def test_a_picture_costs_one_warning_and_never_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "_told", set())
    told: list[str] = []

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "progress.png"))

    def broken(colour: str) -> None:
        raise KeyError(colour)

    for _ in range(3):
        attempt_to_draw(told.append, full)
        attempt_to_draw(told.append, broken, "red")
    assert len(told) == 2
    assert "progress.png" in told[0]
    assert "bytes free" in told[0]
    assert "red" in told[1]


def test_nnunets_commands_say_it_in_one_line_too(tmp_path: Path) -> None:
    code = """
import sys
from nnunet_ssl.messages import say_errors_in_one_line
from nnunet_ssl.files.folders import require_writable
say_errors_in_one_line()
say_errors_in_one_line()
sys.argv[0] = "/bin/nnUNetv2_train"
if sys.argv[2] == "full":
    require_writable(sys.argv[1])
raise KeyError("of somebody else's")
"""
    done = run_bound(code, tmp_path, "full", limit=100)
    assert done.returncode == 1
    assert done.stderr.startswith("nnUNetv2_train: ")
    assert len(done.stderr.splitlines()) == 1
    other = run_bound(code, tmp_path, "fine")
    assert "Traceback" in other.stderr
    assert CannotWrite.__name__ not in other.stderr
