"""The one lock: held by one process, or one thread of it, at a time, on one machine or many, and never by a dead one.

The lock is the kernel's (flock) on a file that says who holds it. It ends with its holder, however that ended; no clocks
are compared. A file is a lock once: the holder removes it, and who had it open notices and begins anew. Where kernel
locks are missing, or known to one machine only, `heartbeat` takes their place:

| file system | what is used |
|---|---|
| local ones; NFS since 2.6.12; Lustre with `-o flock`; CIFS since 5.5 | kernel locks |
| NFS with `nolock` or `local_lock`; Lustre with `localflock` or without; BeeGFS, GPFS, FUSE, 9p | heart-beats |
| Windows | heart-beats |

This follows flock(2), nfs(5) and Lustre's mount options. All machines must mount the folder in the same way. filelock is
not used: its lock files do not tell their owner, and its fall-back cannot know that a process on another machine died.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nnunet_ssl.files.heartbeat import Heartbeat
from nnunet_ssl.files.mounts import locks_reach_everyone
from nnunet_ssl.files.owner import Owner, owner_of, parse, this_process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Lock", "Owner"]

POLL = 1.0  # seconds between two tries, at most
STALE = 5  # looks after which a released file at its path is nobody's
RELEASED = b'{"released": true}'
TAKEN = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)
MISSING = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)

_mutex = threading.RLock()  # no fork between opening a file and knowing that a child must close it
_descriptors: set[int] = set()
_held: set[Lock] = set()
_without: set[int] = set()  # devices whose file system has no kernel locks


class Lock:
    """A lock at `path`; `doing` tells others what its holder is at ("planning Dataset004_Hippocampus").

    Locks of the same path exclude each other in threads, processes and machines. A forked child holds nothing. A lock that
    is let go without `release` ends with the process. `deaths` is how many holders in a row died with it in their hands.
    """

    def __init__(self, path: str | os.PathLike[str], doing: str) -> None:
        self.path, self.doing, self.deaths = os.path.abspath(path), doing, 0
        self._descriptor: int | None = None
        self._heartbeat = Heartbeat(self.path)
        self._beats = False

    def try_acquire(self) -> bool:
        """Whether it is this one's now. Raises OSError where the folder is missing or cannot be written."""
        if self._descriptor is not None or self._beats:
            return False
        if self._kernel_has_locks():
            taken = self._by_kernel()
            if taken is not None:
                return taken
        if self._heartbeat.acquire(self.doing):
            self._beats, self.deaths = True, self._heartbeat.deaths
            _held.add(self)
        return self._beats

    @contextmanager
    def waiting(self) -> Iterator[Lock]:
        """Hold it, after waiting for others as long as it takes; says once whom this process waits for."""
        pause, begun, told = 0.01, time.monotonic(), False
        while not self.try_acquire():
            if not told and time.monotonic() - begun >= POLL:
                print(f"Waiting for {self.owner() or 'another process'} ({self.path}).", flush=True)
                told = True
            time.sleep(pause)
            pause = min(2 * pause, POLL)
        try:
            yield self
        finally:
            self.release()

    def owner(self) -> Owner | None:
        """Who holds it, as its file says; None where nobody does. To be asked after `try_acquire` said no."""
        if os.path.isdir(self.path):
            return owner_of(self._heartbeat.record())
        with suppress(OSError), open(self.path, "rb") as file:
            return owner_of(parse(file.read()))
        return None

    def release(self, *, last: bool = False) -> None:
        """Let others have it; nothing where this one does not hold it.

        `last`: the path will not be used again, so that heart-beats, too, may leave nothing behind.
        """
        _held.discard(self)
        if self._beats:
            self._beats = False
            self._heartbeat.release(last)
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with suppress(OSError):
            os.remove(self.path)
        # Removed first, then marked: who gets this file now must not trust an old directory entry (NFS).
        with suppress(OSError):
            _write(descriptor, RELEASED)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for a child that some library forked
        _close(descriptor)

    def _kernel_has_locks(self) -> bool:
        folder = os.path.dirname(self.path)
        if fcntl is None or os.path.isdir(self.path) or os.stat(folder).st_dev in _without:
            return False
        return locks_reach_everyone(folder)

    def _by_kernel(self) -> bool | None:
        """None where the file system has no kernel locks."""
        stale = 0
        while True:
            try:
                descriptor = self._open(os.O_RDWR | os.O_CREAT)
            except PermissionError:
                self._remove_remains()
                return False
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                content = _read(descriptor)
                if content == RELEASED or not self._is_there(descriptor):
                    # A released file stays where its folder was moved while it was held. Opening asks NFS anew what is there.
                    stale += content == RELEASED
                    if stale >= STALE and self._is_there(descriptor):
                        os.remove(self.path)
                    time.sleep(0.01 * (stale > 1))
                    _close(descriptor)
                    continue
                self.deaths = _deaths(parse(content))
                _write(descriptor, json.dumps({**this_process(self.doing), "deaths": self.deaths}).encode())
            except OSError as error:
                _close(descriptor)
                if error.errno in TAKEN:
                    return False
                if error.errno in MISSING:
                    _without.add(os.stat(os.path.dirname(self.path)).st_dev)
                    return None
                raise
            except BaseException:  # Ctrl-C: nobody would let it go
                _close(descriptor)
                raise
            self._descriptor = descriptor
            _held.add(self)
            return True

    def _open(self, flags: int) -> int:
        with _mutex:
            descriptor = os.open(self.path, flags, 0o666)
            _descriptors.add(descriptor)
        return descriptor

    def _is_there(self, descriptor: int) -> bool:
        """Whether the open file is still the one that others find under the path."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _remove_remains(self) -> None:
        """Remove the file of another user unless its owner lives; raises PermissionError where that is not allowed."""
        descriptor = self._open(os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_there(descriptor):
                os.remove(self.path)
        except BlockingIOError:
            pass
        finally:
            _close(descriptor)


def _deaths(previous: dict[str, Any]) -> int:
    return int(previous.get("deaths", 0)) + 1 if previous else 0


def _read(descriptor: int) -> bytes:
    return os.pread(descriptor, 1 << 16, 0)


def _write(descriptor: int, content: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


def _close(descriptor: int) -> None:
    with _mutex:
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _release_in_child() -> None:
    """A forked child that kept a descriptor would keep its parent's lock."""
    _mutex.release()  # taken before the fork, by the thread that this child consists of
    for lock in _held:
        lock._descriptor, lock._beats = None, False
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_mutex.acquire, after_in_parent=_mutex.release, after_in_child=_release_in_child)
