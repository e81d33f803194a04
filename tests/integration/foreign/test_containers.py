"""Archives in which readers find different files, or far more than there is, through the real command in little memory."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does")]

# Addresses the program has after importing torch, and 1 GB: far less than the files ask for.
LIMITED = """
import os, resource, sys
import torch, safetensors.torch, nnunet_ssl.cli.info
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
sys.argv = ["nnUNetv2_pretrain_info", *sys.argv[1:]]
nnunet_ssl.cli.info.main()
"""
WEIGHTS = {"network_weights": {"encoder.weight": torch.zeros(300, 300)}}


def second_table(path: Path) -> None:
    """Python's reader takes the last table, which lists a compressed member of 4 GB more than the first one."""
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb/data/9", "w") as member:
        for _ in range(40):
            member.write(bytes(10_000_000))


def twins(path: Path) -> None:
    """torch's reader does not tell data.pkl from DATA.PKL."""
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{path.stem}/DATA.PKL", archive.read(f"{path.stem}/data.pkl") * 2)


def overlapping(path: Path) -> None:
    """5,000 members that are one and the same 400 kB: 2 GB by their sizes."""
    torch.save(WEIGHTS, path)
    content = path.read_bytes()
    table, end = content.index(b"PK\x01\x02"), content.rindex(b"PK\x06\x06")
    entry = content[table : content.index(b"PK\x01\x02", table + 4)]
    name = f"{path.stem}/data.pkl".encode()
    assert name in entry
    more = b"".join(entry.replace(name, f"{path.stem}/{n:08d}".encode()) for n in range(5000))
    path.write_bytes(content[:end] + more + content[end:])


def twice(path: Path) -> None:
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes() * 2)


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "second table": (second_table, "compressed member|understand differently"),
    "twins": (twins, "names a member twice"),
    "overlapping": (overlapping, "understand differently"),
    "twice": (twice, "understand differently"),
}


@pytest.mark.parametrize("what", FILES)
def test_no_reader_sees_what_another_does_not(what, run_command, tmp_path):
    make, match = FILES[what]
    make(tmp_path / "a.pth")
    result = run_command(["python", "-c", LIMITED, tmp_path / "a.pth"], check=False, timeout=60)
    assert result.returncode == 1, result.stderr
    assert any(part in result.stderr for part in match.split("|")), result.stderr
    assert "Traceback" not in result.stderr


def test_the_command_has_memory_enough_for_an_honest_file(run_command, tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth")
    assert "encoder.weight" not in run_command(["python", "-c", LIMITED, tmp_path / "a.pth"]).stderr


def test_the_command_itself(run_command, tmp_path):
    twins(tmp_path / "a.pth")
    shutil.copy(tmp_path / "a.pth", tmp_path / "b.pth")
    result = run_command(["nnUNetv2_pretrain_info", tmp_path / "b.pth"], check=False)
    assert "names a member twice" in result.stderr
    assert os.listdir(tmp_path) in (["a.pth", "b.pth"], ["b.pth", "a.pth"])
