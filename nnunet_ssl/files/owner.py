"""Who holds a lock: written into its file, read by those who wait, and asked whether it lives where that can be told."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any


@dataclass(frozen=True)
class Owner:
    """A process that holds a lock.

    `place` is where process numbers mean what they mean there, `born` tells a process from a later one with its number; both are
    for `ended_here`, the rest is for people.
    """

    host: str
    pid: int
    started: str  # local time of its machine, when it took the lock
    doing: str
    slurm_job: str | None = None
    place: str = ""
    born: str = ""

    def __str__(self) -> str:
        job = f", SLURM job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{job}, {self.doing} since {self.started}"

    def ended_here(self) -> bool:
        """Whether it ran on this machine and is no more; False also where that cannot be told from here."""
        return bool(self.place) and self.place == place() and not _lives(self.pid, self.born)


def this_process(doing: str) -> dict[str, Any]:
    """What is written into a lock's file."""
    me = os.getpid()
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return asdict(Owner(socket.gethostname(), me, now, doing, os.environ.get("SLURM_JOB_ID"), place(), _born(me)))


def parse(content: bytes) -> dict[str, Any]:
    """What such a file says, empty while it is being written."""
    with suppress(ValueError):
        record = json.loads(content)
        if isinstance(record, dict):
            return record
    return {}


def owner_of(record: Mapping[str, Any]) -> Owner | None:
    """The owner that a file names, None where it names none."""
    try:
        job = record.get("slurm_job")
        texts = {name: str(record[name]) for name in ("host", "started", "doing", "place", "born")}
        return Owner(pid=int(record["pid"]), slurm_job=None if job is None else str(job), **texts)
    except (KeyError, TypeError, ValueError):
        return None


@lru_cache(maxsize=1)
def place() -> str:
    """This machine since it was started, and the container in it; empty where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty when it is no more."""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/stat") as file:
        # The name in parentheses may hold spaces; state is the first field behind it, the start the 20th.
        fields = file.read().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # a zombie does nothing any more
    return ""


def _lives(pid: int, born: str) -> bool:
    return bool(born) and _born(pid) == born
