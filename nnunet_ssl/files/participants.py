"""Several processes, on one or many machines, share the work in a folder without anyone coordinating them.

All they share is the file system. The work has parts (images to preprocess, cells of a comparison), each with a name, here called
case. Who works on a case holds its lock (nnunet_ssl.files.locks), which ends with the process.
Results are made in a folder of the process' own and moved into place whole.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from collections.abc import Container
from contextlib import suppress
from os.path import isdir, join
from pathlib import Path

from nnunet_ssl.files.locks import Lock

MAX_DEATHS = 3  # processes that may die with a case in their hands before the case is to blame

CLAIMS, WORK, PRESENT = "claims", "work", "present"
DOING = "preprocessing"


class Participant:
    """This process among those that work on the cases of a folder; a context manager.

    `folder` is the state folder beside the cases. Inside, `work` is a folder of this process' own for unfinished files.
    doing: what others are told ("preprocessing").
    """

    def __init__(self, folder: str, doing: str = DOING) -> None:
        self.folder, self.doing = folder, doing
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.work = join(folder, WORK, self.name)
        self._held: dict[str, Lock] = {}
        self._presence = _presence(folder, self.name, doing)

    def __enter__(self) -> Participant:
        for name in (CLAIMS, PRESENT, WORK):
            os.makedirs(join(self.folder, name), exist_ok=True)
        bury_dead(self.folder)
        while not self._presence.try_acquire():
            time.sleep(0.01)  # another process has just looked whether it is a dead one's
        os.makedirs(self.work)
        return self

    def __exit__(self, *_: object) -> None:
        for case in list(self._held):
            self.release(case)
        shutil.rmtree(self.work, ignore_errors=True)
        self._presence.release(last=True)

    def others(self) -> list[str]:
        """The other living processes on this folder."""
        return [name for name in living(self.folder) if name != self.name]

    def claim(self, case: str) -> int | None:
        """How many processes died with this case in their hands, None when a living one has it."""
        lock = self._lock(case)
        if not lock.try_acquire():
            return None
        self._held[case] = lock
        return lock.deaths

    def release(self, case: str) -> None:
        """Give a case back: finished, left out, or for others to try."""
        if case in self._held:
            self._held.pop(case).release()

    def forget_claims(self, but: Container[str]) -> None:
        """Remove what dead processes left of claims on cases that nobody needs to work on; those on `but` count deaths."""
        for case in os.listdir(join(self.folder, CLAIMS)):
            lock = self._lock(case)
            if case not in but and not isdir(lock.path) and lock.try_acquire():
                lock.release()

    def _lock(self, case: str) -> Lock:
        return Lock(join(self.folder, CLAIMS, case), f"{self.doing} {case}")


def living(folder: str) -> list[str]:
    """The living processes on the cases whose state folder this is."""
    found = _held_by_others(folder)
    if found:
        time.sleep(0.05)  # two that look at a dead one at the same moment must not take each other for it
        found = _held_by_others(folder)
    return found


def certainly_living(folder: str) -> list[str]:
    """As `living`; where only heart-beats tell, after waiting for one, or until their silence tells the contrary."""
    first = _signs(folder)
    while True:
        found, signs = living(folder), _signs(folder)
        if not found or any(signs.get(name) != first.get(name) or not signs.get(name) for name in found):
            return found
        time.sleep(1)


def _signs(folder: str) -> dict[str, list[bytes]]:
    """What the files of those present say whose locks are not the kernel's."""
    signs: dict[str, list[bytes]] = {}
    for path in sorted(Path(folder, PRESENT).glob("*/*")):
        with suppress(FileNotFoundError):
            signs.setdefault(path.parent.name, []).append(path.read_bytes())
    return signs


def bury_dead(folder: str) -> None:
    """Remove the unfinished files of dead processes; their claims stay, for whoever takes the cases up."""
    present = os.listdir(join(folder, WORK)) if isdir(join(folder, WORK)) else []
    alive = living(folder)  # asked later: who makes a folder there is present before
    for name in set(present) - set(alive):
        shutil.rmtree(join(folder, WORK, name), ignore_errors=True)


def _held_by_others(folder: str) -> list[str]:
    """Who is present; what the dead left there is removed."""
    present = join(folder, PRESENT)
    found = []
    for name in os.listdir(present) if isdir(present) else []:
        lock = _presence(folder, name)
        with suppress(FileNotFoundError):
            if not lock.try_acquire():
                found.append(name)
                continue
        lock.release(last=True)  # names never come again
    return found


def _presence(folder: str, name: str, doing: str = DOING) -> Lock:
    return Lock(join(folder, PRESENT, name), doing)
