"""The lock for file systems without kernel locks: a folder of numbered files, the highest of which holds it.

Only one process can create a number that does not exist, so only one follows a holder. It gives signs of life by counting
up in its file; who waits compares what it reads with what it read before, over its own monotonic time. No clock of
another machine is asked. The last file stays, saying that it is released: if numbers began anew, a process that was
asleep since it looked could create one that counts.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import threading
import time
from contextlib import suppress
from os.path import join
from typing import Any

from nnunet_ssl.files.owner import owner_of, parse, this_process

BEAT = 15.0  # seconds between two signs of life
SILENCE = 150.0  # seconds without one after which a process on another machine counts as dead

_mutex = threading.RLock()
_beating: set[Heartbeat] = set()
_watched: dict[str, tuple[tuple[int, bytes] | None, float]] = {}  # what was read last, and since when it is the same
_thread: threading.Thread | None = None


class Heartbeat:
    """One holder or candidate; `deaths` counts the holders in a row that died with it, as of the last `acquire`."""

    def __init__(self, folder: str) -> None:
        self.folder, self.deaths = folder, 0
        self._number, self._record = 0, dict[str, Any]()

    def acquire(self, doing: str) -> bool:
        """Take it if it is free or its holder is dead. Raises OSError where the folder cannot be written."""
        self._make_folder()
        top, deaths = self._top(), 0
        if top:
            content = self._read(top)
            if content is None:
                return False  # somebody follows at this moment
            record = parse(content)
            if not record.get("released"):
                if not self._dead(top, content):
                    return False
                deaths = int(record.get("deaths", 0)) + 1
        record = {**this_process(doing), "deaths": deaths, "beat": 0}
        if not self._create(top + 1, json.dumps(record)):
            return False
        if self._top() != top + 1:  # others went on while this process slept
            self._remove(str(top + 1))
            return False
        for name in os.listdir(self.folder):
            if name != str(top + 1):  # those before, and what candidates that were killed left
                self._remove(name)
        self.deaths = deaths
        _watched.pop(self.folder, None)
        self._number, self._record = top + 1, record
        _begin(self)
        return True

    def release(self, last: bool) -> None:
        """Let others have it; with `last`, nobody needs it any more and nothing is left behind."""
        with _mutex:
            _beating.discard(self)
            if not last:
                self._write({**self._record, "released": True})
                return
        self._remove(str(self._number))
        with suppress(OSError):
            os.rmdir(self.folder)  # unless another has it

    def record(self) -> dict[str, Any]:
        """What the holder's file says, empty where nobody holds it."""
        record = parse(self._read(self._top()) or b"")
        return {} if record.get("released") else record

    def beat(self) -> None:
        """Give a sign of life; says so when another process has taken over."""
        self._record["beat"] += 1
        if not self._write(self._record):
            _beating.discard(self)
            print(
                f"WARNING: another process has taken over {self.folder}: this one gave no sign of life for {SILENCE:g} s.",
                flush=True,
            )

    def _make_folder(self) -> None:
        try:
            os.makedirs(self.folder, exist_ok=True)
        except FileExistsError:
            # The file of a kernel lock: empty where taking it showed that there are none, else from another mount.
            with open(self.folder, "rb") as file:
                owner = owner_of(parse(file.read()))
            if owner is not None and not owner.ended_here():
                raise FileExistsError(
                    errno.EEXIST,
                    f"There are no kernel locks here, but {owner} holds one. Let it finish; if it is no more, remove the file",
                    self.folder,
                ) from None
            with suppress(FileNotFoundError):
                os.remove(self.folder)
            os.makedirs(self.folder, exist_ok=True)

    def _write(self, record: dict[str, Any]) -> bool:
        try:
            with open(self._file(self._number), "r+", encoding="utf-8") as file:
                file.write(json.dumps(record))
                file.truncate()
        except FileNotFoundError:
            return False
        except OSError:
            pass  # a full disk or a server that is away: the next beat may reach it
        return True

    def _dead(self, number: int, content: bytes) -> bool:
        owner = owner_of(parse(content))
        if owner is not None and owner.ended_here():
            return True
        now = time.monotonic()
        seen, since = _watched.get(self.folder, (None, now))
        if seen != (number, content):
            since = now
        _watched[self.folder] = (number, content), since
        return now - since > SILENCE

    def _numbers(self) -> list[int]:
        try:
            return [int(name) for name in os.listdir(self.folder) if name.isdigit()]
        except FileNotFoundError:
            return []

    def _top(self) -> int:
        return max(self._numbers(), default=0)

    def _file(self, number: int) -> str:
        return join(self.folder, str(number))

    def _read(self, number: int) -> bytes | None:
        with suppress(FileNotFoundError), open(self._file(number), "rb") as file:
            return file.read()
        return None

    def _create(self, number: int, content: str) -> bool:
        """Whether this process is the one that made the file; whole from the start where the file system has links."""
        draft, path = join(self.folder, f".{secrets.token_hex(8)}"), self._file(number)
        try:
            with open(draft, "x", encoding="utf-8") as file:
                file.write(content)
            try:
                os.link(draft, path)
            except (FileExistsError, FileNotFoundError):
                raise
            except OSError:
                with open(path, "x", encoding="utf-8") as file:
                    file.write(content)
        except (FileExistsError, FileNotFoundError):
            return False
        finally:
            self._remove(os.path.basename(draft))
        return True

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.remove(join(self.folder, name))


def _begin(holder: Heartbeat) -> None:
    global _thread
    with _mutex:
        _beating.add(holder)
        if _thread is None:
            _thread = threading.Thread(target=_beat, daemon=True, name="signs of life")
            _thread.start()


def _beat() -> None:
    while True:
        time.sleep(BEAT)
        with _mutex:
            for holder in list(_beating):
                holder.beat()


def _forget_in_child() -> None:
    """A forked child holds nothing of its parent's."""
    global _mutex, _thread
    _mutex, _thread = threading.RLock(), None
    _beating.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
