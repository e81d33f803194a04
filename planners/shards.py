"""Several processes, on one or many machines, share the cases of a folder without anyone coordinating them.

All they share is the file system. Who works on something holds a file that only one can create; a thread touches the
files of a living process, so that what a dead one held is free again after a while. Two at the same case would waste
time and do no harm: every result is moved into place whole, and is the same whoever made it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os.path import isdir, join
from typing import Any

BEAT = 15.0  # seconds between two signs of life
SILENCE = 150.0  # seconds without one after which a process on another machine counts as dead
POLL = 1.0  # seconds between two looks at what others hold
MAX_DEATHS = 3  # processes that may die with a case in their hands before the case is to blame

CLAIMS, WORK, PRESENT = "claims", "work", "present"


class Presence:
    """A file that says: this process lives. Made by `create`, touched every BEAT seconds until `end`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def create(self) -> bool:
        """Whether the file could be made; False where another process has it."""
        if not _create(self.path, {"place": _place(), "pid": os.getpid()}):
            return False
        self._thread.start()
        return True

    def end(self) -> None:
        """Take the file away."""
        self._over.set()
        with suppress(FileNotFoundError):
            os.remove(self.path)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(OSError):
                os.utime(self.path)


def is_alive(path: str) -> bool:
    """Whether the process that made a presence file lives, as far as can be told from here."""
    try:
        owner, touched = _read(path), os.stat(path).st_mtime
    except FileNotFoundError:
        return False
    if owner.get("place") == _place():
        try:
            os.kill(int(owner["pid"]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
    # A number that exists may be another process' by now, so signs of life count here too.
    return _now_there(os.path.dirname(path)) - touched < SILENCE


@contextmanager
def alone(path: str, doing: str) -> Iterator[None]:
    """Hold the lock file `path`, after waiting for others; `doing` is what to tell the user while waiting."""
    lock, told = Presence(path), False
    while not lock.create():
        if not is_alive(path):
            # Renamed and not removed: of several that find a dead lock only one gets it away.
            grave = f"{path}.{secrets.token_hex(4)}"
            with suppress(FileNotFoundError):
                os.rename(path, grave)
                os.remove(grave)
            continue
        if not told:
            print(f"Waiting for another process that is {doing} ({path}).", flush=True)
            told = True
        time.sleep(POLL)
    try:
        yield
    finally:
        lock.end()


class Shard:
    """This process among those that work on the cases of a folder; a context manager.

    `folder` is the state folder beside the cases. Inside, `work` is a folder of this process' own for unfinished files.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.work = join(folder, WORK, self.name)
        self.held: set[str] = set()
        self._presence = Presence(join(folder, PRESENT, self.name))

    def __enter__(self) -> Shard:
        for name in (CLAIMS, PRESENT):
            os.makedirs(join(self.folder, name), exist_ok=True)
        bury_dead(self.folder)
        self._presence.create()
        os.makedirs(self.work)
        return self

    def __exit__(self, *_: object) -> None:
        for case in list(self.held):
            self.release(case)
        shutil.rmtree(self.work, ignore_errors=True)
        self._presence.end()

    def others(self) -> list[str]:
        """The other living processes on this folder."""
        return [name for name in living(self.folder) if name != self.name]

    def claim(self, case: str) -> int | None:
        """How many processes died with this case in their hands, None when a living one has it."""
        path, deaths = self._path(case), 0
        if not _create(path, {"owner": self.name, "deaths": 0}):
            try:
                previous, made = _read(path), os.stat(path).st_mtime
            except FileNotFoundError:
                return None  # released this moment; the next look finds out whether it is finished
            owner = join(self.folder, PRESENT, str(previous.get("owner")))
            if is_alive(owner) or (not previous and _now_there(os.path.dirname(path)) - made < SILENCE):
                return None
            deaths = int(previous.get("deaths", 0)) + 1
            grave = f"{path}.{secrets.token_hex(4)}"
            try:
                os.rename(path, grave)
                os.remove(grave)
            except FileNotFoundError:
                return None  # another was faster
            if not _create(path, {"owner": self.name, "deaths": deaths}):
                return None
        self.held.add(case)
        return deaths

    def release(self, case: str) -> None:
        """Give a case back: finished, left out, or for others to try."""
        self.held.discard(case)
        with suppress(FileNotFoundError):
            os.remove(self._path(case))

    def _path(self, case: str) -> str:
        return join(self.folder, CLAIMS, case)


def living(folder: str) -> list[str]:
    """The living processes on the cases whose state folder this is."""
    present = join(folder, PRESENT)
    names = os.listdir(present) if isdir(present) else []
    return [name for name in names if not name.startswith(".clock-") and is_alive(join(present, name))]


def bury_dead(folder: str) -> None:
    """Remove the unfinished files of dead processes; their claims stay, for whoever takes the cases up."""
    for kind in (WORK, PRESENT):
        for name in os.listdir(join(folder, kind)) if isdir(join(folder, kind)) else []:
            path = join(folder, kind, name)
            if is_alive(join(folder, PRESENT, name)):
                continue
            if isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(FileNotFoundError):
                    os.remove(path)


def _create(path: str, content: dict[str, Any]) -> bool:
    """Make a file with this content unless there is one."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file)
    return True


def _read(path: str) -> dict[str, Any]:
    """The content of such a file, empty while it is being written."""
    with open(path, encoding="utf-8") as file, suppress(ValueError):
        return dict(json.load(file))
    return {}


def _place() -> str:
    """Where process numbers mean what they mean here: the machine, and the container in it."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _now_there(folder: str) -> float:
    """The time by the clock that stamps files in `folder`, which need not be this machine's."""
    probe = join(folder, f".clock-{secrets.token_hex(4)}")
    with open(probe, "w"):
        stamp = os.stat(probe).st_mtime
    with suppress(FileNotFoundError):
        os.remove(probe)
    return stamp
