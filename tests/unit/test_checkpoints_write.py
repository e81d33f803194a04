"""Writing checkpoints: killed at any moment, on a full disk, with content that is not plain."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ssl.checkpoints import write
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.checkpoints.write import save_checkpoint, to_plain
from nnunet_ssl.errors import CheckpointError

# One process imports torch once and forks a saver per kill, so that dozens of kills take seconds.
KILL_LOOP = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from nnunet_ssl.checkpoints.write import save_checkpoint
torch.set_num_threads(1)
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
path, previous = folder / "checkpoint_latest.pth", folder / "checkpoint_latest_previous.pth"
dice = random.Random(0)

def content(stamp):
    return {"network_weights": {"weight": torch.full((500_000,), float(stamp))}, "stamp": stamp}

def check(file):
    loaded = torch.load(file, weights_only=True)
    assert loaded["network_weights"]["weight"].eq(loaded["stamp"]).all(), file
    return loaded["stamp"]

save_checkpoint(content(0), path)
stamp, cut = 0, 0
for kill in range(kills):
    child = os.fork()
    if child == 0:
        while True:
            stamp += 1
            save_checkpoint(content(stamp), path, keep_previous=True)
    time.sleep(dice.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    cut += any(folder.glob(".checkpoint_latest.pth.*.tmp"))
    for left_over in folder.glob(".*.tmp"):
        left_over.unlink()
    stamp = check(path)
    if previous.exists():
        assert check(previous) in (stamp - 1, stamp)
print(stamp, cut)
"""


def test_every_kill_leaves_a_loadable_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILL_LOOP, str(tmp_path), "40"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    saved, cut = map(int, done.stdout.split())
    assert saved > 0, "no save was ever finished: the kills prove nothing"
    assert cut > 0, "no kill hit a save half-way: the kills prove nothing"


FULL_DISK = """
import resource, sys, torch
from nnunet_ssl.checkpoints.write import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
save_checkpoint({"weight": torch.randn(1_000_000)}, sys.argv[1], keep_previous=True)
"""


def test_full_disk_keeps_the_old_file_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    save_checkpoint({"weight": torch.ones(3)}, path)
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert "CheckpointError" in message
    assert "4,000,000 bytes" in message
    assert str(tmp_path) in message
    assert "untouched" in message
    assert "Free space" in message
    assert os.listdir(tmp_path) == [path.name], "a temporary file was left behind"
    assert torch.load(path, weights_only=True)["weight"].eq(1).all()


def test_no_space_left_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    save_checkpoint({"weight": torch.ones(3)}, path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*untouched"):
        save_checkpoint({"weight": torch.zeros(3)}, path)
    assert os.listdir(tmp_path) == [path.name]
    assert read_checkpoint(path)["weight"].eq(1).all()


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No such file.*Make the folder .*nowhere first"):
        save_checkpoint({}, tmp_path / "nowhere" / "checkpoint.pth")


def test_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"weight": torch.ones(3)}, tmp_path / "checkpoint.pth")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("links", [True, False])
def test_keep_previous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:

        def no_links(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(write.os, "link", no_links)
    path, previous = tmp_path / "checkpoint_latest.pth", tmp_path / "checkpoint_latest_previous.pth"
    save_checkpoint({"epoch": 0}, path, keep_previous=True)
    assert not previous.exists()
    for epoch in (1, 2):
        save_checkpoint({"epoch": epoch}, path, keep_previous=True)
        assert (read_checkpoint(previous)["epoch"], read_checkpoint(path)["epoch"]) == (epoch - 1, epoch)
    assert sorted(os.listdir(tmp_path)) == [path.name, previous.name]


def test_damaged_file_never_becomes_the_previous(tmp_path: Path) -> None:
    path, previous = tmp_path / "checkpoint_latest.pth", tmp_path / "checkpoint_latest_previous.pth"
    for epoch in (0, 1):
        save_checkpoint({"epoch": epoch}, path, keep_previous=True)
    path.write_bytes(path.read_bytes()[:-50])
    save_checkpoint({"epoch": 2}, path, keep_previous=True)
    assert (read_checkpoint(previous)["epoch"], read_checkpoint(path)["epoch"]) == (0, 2)


def test_previous_linked_to_the_same_file(tmp_path: Path) -> None:
    """Renaming a link onto another link of the same file does nothing: it must not be left lying around."""
    path, previous = tmp_path / "checkpoint_latest.pth", tmp_path / "checkpoint_latest_previous.pth"
    save_checkpoint({"epoch": 0}, path)
    os.link(path, previous)
    save_checkpoint({"epoch": 1}, path, keep_previous=True)
    assert sorted(os.listdir(tmp_path)) == [path.name, previous.name]
    assert read_checkpoint(previous)["epoch"] == 0


def test_plain_content() -> None:
    plain = to_plain(
        OrderedDict(
            scalar=np.float64(0.5),
            integer=np.int32(3),
            text=np.str_("a"),
            flag=np.bool_(True),
            array=np.arange(3, dtype=np.int16),
            device=torch.device("cpu"),
            folder=Path("a") / "b",
            nested=[(1, None), {"x": torch.nn.Parameter(torch.ones(2))}],
        )
    )
    assert type(plain) is dict
    assert [type(plain[k]) for k in ("scalar", "integer", "text", "flag", "device", "folder")] == [
        float,
        int,
        str,
        bool,
        str,
        str,
    ]
    assert torch.equal(plain["array"], torch.arange(3, dtype=torch.int16))
    assert plain["nested"][0] == (1, None)
    weight = plain["nested"][1]["x"]
    assert type(weight) is torch.Tensor
    assert not weight.requires_grad


def test_content_that_is_not_plain_is_named(tmp_path: Path) -> None:
    class Foreign:
        pass

    with pytest.raises(CheckpointError, match=r"checkpoint\['ssl'\]\['config'\]\[1\] is a .*Foreign"):
        save_checkpoint({"ssl": {"config": [1, Foreign()]}}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"numpy\.ndarray"):
        save_checkpoint({"log": np.array([None, "a"])}, tmp_path / "checkpoint.pth")
    assert os.listdir(tmp_path) == []


def test_aliases_are_stored_once_and_views_without_their_buffer(tmp_path: Path) -> None:
    shared, buffer = torch.randn(100_000), torch.randn(1_000_000)
    save_checkpoint(
        {"a": shared, "b": shared.detach(), "view": buffer[:10], "same": buffer[:10]}, tmp_path / "checkpoint.pth"
    )
    assert (tmp_path / "checkpoint.pth").stat().st_size < 2 * 4 * 100_000
    loaded = read_checkpoint(tmp_path / "checkpoint.pth")
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr()
    assert torch.equal(loaded["view"], buffer[:10])
    assert loaded["view"].data_ptr() == loaded["same"].data_ptr()


def test_temporary_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    save_checkpoint({}, tmp_path / "checkpoint.pth")
    (tmp_path / "other").touch()
    assert (tmp_path / "checkpoint.pth").stat().st_mode == (tmp_path / "other").stat().st_mode
