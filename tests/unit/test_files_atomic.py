"""The one writer: killed at any moment, on a full disk, beside other writers."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunet_ssl.errors import CannotWrite
from nnunet_ssl.files import atomic
from nnunet_ssl.files.atomic import atomic_path, atomic_write, copy_file, write_bytes, write_json, write_text

KILL_LOOP = """
import json, os, random, signal, sys, time
from pathlib import Path
from nnunet_ssl.files import atomic
folder, dice = Path(sys.argv[1]), random.Random(0)
path, cut, last = folder / "table.json", 0, 0
atomic.write_json({"stamp": 0, "rows": [0] * 20_000}, path)
kills, end = 0, time.monotonic() + 100
while kills < 60 or (not (last and cut) and time.monotonic() < end):  # a busy machine may need more
    kills += 1
    child = os.fork()
    if child == 0:
        atomic._CLEANED.clear()
        while True:
            last += 1
            atomic.write_json({"stamp": last, "rows": [last] * 20_000}, path)
    time.sleep(dice.uniform(0, 0.03 if kills <= 60 else 1.0))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = json.loads(path.read_text())
    assert found["rows"] == [found["stamp"]] * 20_000, "a torn file"
    last = found["stamp"]
    left_over = list(folder.glob(".*.tmp"))
    # A kill before a writer has cleaned leaves one more; the first that is not killed so early removes them all.
    assert len(left_over) <= 10, f"nobody cleans: {left_over}"
    cut += len(left_over)
print(last, cut)
"""


def test_every_kill_leaves_a_whole_file_and_the_next_writer_cleans(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILL_LOOP, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    written, cut = map(int, done.stdout.split())
    assert written > 0, "nothing was ever written: the kills prove nothing"
    assert cut > 0, "no kill hit a half-written file: the kills prove nothing"
    atomic._CLEANED.discard(str(tmp_path))
    write_json(1, tmp_path / "other.json")
    assert sorted(os.listdir(tmp_path)) == ["other.json", "table.json"]


def test_a_living_writer_keeps_its_file(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "slow.json", "w") as file:
        file.write("[1, ")
        file.flush()
        others = subprocess.run(
            [
                sys.executable,
                "-c",
                f"from nnunet_ssl.files.atomic import write_json; write_json(2, {str(tmp_path / 'x')!r})",
            ],
            capture_output=True,
            text=True,
        )
        assert others.returncode == 0, others.stderr
        file.write("2]")
    assert json.loads((tmp_path / "slow.json").read_text()) == [1, 2]


def test_without_locks_only_old_files_are_left_overs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    old, young = tmp_path / ".plans.json.0123abcd.tmp", tmp_path / ".plans.json.4567abcd.tmp"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    write_json({}, tmp_path / "plans.json")
    assert (old.exists(), young.exists()) == (False, True)


def test_files_of_others_are_no_left_overs(tmp_path: Path) -> None:
    names = [".plans.json.tmp", "plans.json.0123abcd.tmp", ".plans.0123abcd.tmp~", ".x.0123ABCD.tmp"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".folder.0123abcd.tmp").mkdir()
    (tmp_path / ".link.0123abcd.tmp").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / ".pipe.0123abcd.tmp")
    write_json({}, tmp_path / "plans.json")
    assert {".folder.0123abcd.tmp", ".link.0123abcd.tmp", "plans.json", *names} <= set(os.listdir(tmp_path))


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_a_plain_open(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_json({}, tmp_path / "ours")
        open(tmp_path / "plain", "w").close()
    finally:
        os.umask(before)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "ours").chmod(0o640)
    write_json([], tmp_path / "ours")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o640


def test_a_link_is_replaced_and_what_it_points_to_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "original").write_text("theirs")
    (tmp_path / "link").symlink_to("original")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("link", "loop"):
        write_text("ours", tmp_path / name)
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "ours"
    assert (tmp_path / "original").read_text() == "theirs"


def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    write_text("gone", "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    done = subprocess.run(
        [sys.executable, "-c", "from nnunet_ssl.files.atomic import write_json; write_json([1], '/dev/stdout', None)"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[1]"
    with pytest.raises(CannotWrite, match="Is a directory"):
        write_text("", tmp_path)


def test_names_as_long_as_they_may_be(tmp_path: Path) -> None:
    for name in ("x" * 255, "ö" * 127):
        write_text(name, tmp_path / name)
        assert (tmp_path / name).read_text() == name


def test_libraries_write_into_the_temporary_file(tmp_path: Path) -> None:
    """Only safetensors puts a file of its own into its place, when it is whole; that one gets our permissions."""
    import numpy as np
    import pandas as pd
    import SimpleITK as sitk
    import torch
    from matplotlib.figure import Figure
    from safetensors.torch import save_file

    writers = {
        "table.csv": lambda path: pd.DataFrame({"a": [1]}).to_csv(path),
        "table.parquet": lambda path: pd.DataFrame({"a": [1]}).to_parquet(path),
        "picture.png": lambda path: Figure().savefig(path, format="png"),
        "image.nii.gz": lambda path: sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4))), str(path)),
        "weights.safetensors": lambda path: save_file({"a": torch.zeros(2)}, path),
        "weights.pth": lambda path: torch.save({"a": torch.zeros(2)}, path),
    }
    for name, write in writers.items():
        with atomic_path(tmp_path / name, ending=name[name.index(".") :]) as temporary:
            inode = temporary.stat().st_ino
            write(temporary)
            assert temporary.stat().st_ino == inode or name == "weights.safetensors", name
        assert (tmp_path / name).stat().st_size > 0
        assert (tmp_path / name).stat().st_mode == (tmp_path / "table.csv").stat().st_mode, name
    assert sorted(os.listdir(tmp_path)) == sorted(writers)


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_json([1], tmp_path / "x.json")
    with pytest.raises(TypeError):
        write_json({"a": object()}, tmp_path / "x.json")

    def half_way() -> None:
        with atomic_write(tmp_path / "x.json") as file:
            file.write(b"half")
            raise KeyError("a mistake of the caller's")

    with pytest.raises(KeyError):
        half_way()
    assert (json.loads((tmp_path / "x.json").read_text()), os.listdir(tmp_path)) == ([1], ["x.json"])


def test_a_copy_keeps_the_time_of_change(tmp_path: Path) -> None:
    write_bytes(b"label", tmp_path / "a")
    os.utime(tmp_path / "a", (1e9, 1e9))
    copy_file(tmp_path / "a", tmp_path / "b")
    assert ((tmp_path / "b").read_bytes(), (tmp_path / "b").stat().st_mtime) == (b"label", 1e9)


FULL_DISK = """
import os, resource, sys
os.environ["nnUNet_results"] = sys.argv[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
from nnunet_ssl.files.atomic import atomic_path, write_bytes
if sys.argv[2] == "bytes":
    write_bytes(bytes(1_000_000), sys.argv[1] + "/file")
else:
    import torch  # its writer hides the reason
    with atomic_path(sys.argv[1] + "/file") as temporary:
        torch.save(torch.zeros(1_000_000), temporary)
"""


@pytest.mark.parametrize("writer", ["bytes", "library"])
def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path: Path, writer: str) -> None:
    (tmp_path / "file").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), writer], capture_output=True, text=True, timeout=120
    )
    message = done.stderr.strip().splitlines()[-1]
    assert "CannotWrite" in message, done.stderr
    for part in (str(tmp_path), "bytes free", "Free space", "nnUNet_results to another disk"):
        assert part in message
    assert ((tmp_path / "file").read_text(), os.listdir(tmp_path)) == ("old", ["file"])


def test_an_error_about_another_file_is_not_explained_as_this_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_write(tmp_path / "x"):
        (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(CannotWrite, match=r"nowhere.*Make the folder"), atomic_write(tmp_path / "x"):
        write_text("", tmp_path / "nowhere" / "y")
    assert os.listdir(tmp_path) == []
