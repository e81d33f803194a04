"""The one way in which this package writes files: at every moment the old file or the new one is there, whole.

The content goes into a temporary file in the same folder, is flushed to the disk, and takes the place of the old file by
a rename; then the folder is flushed, so that the rename survives a power cut. Whoever is killed on the way leaves a
temporary file behind, which the next writer in that folder removes. It knows the dead from the living by a kernel lock that
every writer holds on its own temporary file.

- A new file gets the permissions that a plain `open` gives under the umask, an old one keeps those it had.
- A symbolic link in the file's place is replaced by a file: what it points to may be somebody's only copy. Links among the
  folders are followed as always.
- What is no file (/dev/null, /dev/stdout, a pipe) is written to directly.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from nnunet_ssl.errors import CannotWrite
from nnunet_ssl.files.unwritable import FULL, cannot_write

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Where = str | os.PathLike[str]

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\.[A-Za-z0-9.]+)?")
# Where files cannot be locked, a temporary file counts as left over when it is older than a new one by this much.
STALE_SECONDS = 3600.0
_CLEANED: set[str] = set()  # folders this process has looked through; once, because they may hold 100,000 files


@contextmanager
def atomic_write(path: Where, mode: str = "wb") -> Iterator[IO[Any]]:
    """An open temporary file, which becomes `path` when the block ends well and vanishes when it does not.

    mode: "wb" or "w", which is UTF-8. Raises CannotWrite when the folder is full, read-only or not there.
    """
    with atomic_path(path) as temporary:
        # A text is the same on every system: no other line ends, no other encoding.
        text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with temporary.open(mode, **text) as file:
            yield file


@contextmanager
def atomic_path(path: Where, ending: str = "") -> Iterator[Path]:
    """As `atomic_write`, for libraries that want a path: the temporary file's, empty, closed, to be written into.

    ending: what its name must end in, for libraries that choose the format by it (".nii.gz").
    """
    path = Path(path)
    if _is_special(path):
        yield path
        return
    try:
        temporary, descriptor = _create(path, ending)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        mode = temporary.stat().st_mode
        yield temporary
        _set_permissions(temporary, path, mode)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        reason = _reason(error, temporary, path)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)  # before the free bytes are counted
            descriptor = None
        if reason is not None:
            raise cannot_write(path, reason) from error
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def write_bytes(content: bytes, path: Where) -> None:
    """Write a file of bytes."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(content: str, path: Where) -> None:
    """Write a text file, in UTF-8."""
    write_bytes(content.encode("utf-8"), path)


def copy_file(source: Where, path: Where) -> None:
    """Copy a file with its time of change, so that the copy is there whole or not at all."""
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)
        shutil.copystat(source, temporary)


def write_json(content: Any, path: Where, indent: int | None = 2, sort_keys: bool = False) -> None:
    """Write JSON; raises TypeError before anything is written for what JSON cannot hold."""
    write_text(json.dumps(content, indent=indent, sort_keys=sort_keys), path)


def _is_special(path: Path) -> bool:
    with suppress(OSError):
        mode = path.stat().st_mode  # of what a link points to: /dev/stdout is one
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return False


def _create(path: Path, ending: str) -> tuple[Path, int | None]:
    """A new temporary file for `path`, and the open file that holds its lock."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    while True:
        # Names have at most 255 bytes, and a long one needs room for what makes the temporary one unique.
        name = os.fsdecode(os.fsencode(path.name)[:200])
        temporary = path.with_name(f".{name}.{secrets.token_hex(4)}.tmp{ending}")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if fcntl is None:
            os.close(descriptor)
            return temporary, None
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:  # nobody took it for a left-over before it was locked
            _remove_left_overs(temporary)
            return temporary, descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether the lock was to be had; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_left_overs(own: Path) -> None:
    """Remove what killed writers left in the folder of `own`, a living writer's temporary file."""
    folder = os.path.realpath(own.parent)
    if folder in _CLEANED:
        return
    _CLEANED.add(folder)
    with suppress(OSError), os.scandir(own.parent) as entries:
        for found in [entry.path for entry in entries if TEMPORARY.fullmatch(entry.name)]:
            with suppress(OSError):
                _remove_if_left_over(found, own)


def _remove_if_left_over(found: str, own: Path) -> None:
    descriptor = os.open(found, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        locked = _lock(descriptor)
        state = os.fstat(descriptor)
        # Both times are the file server's: no two clocks are compared.
        old = state.st_mtime < own.stat().st_mtime - STALE_SECONDS
        # A file of several names is a living writer's link to a file that is in use, which holds no lock and no room.
        if (locked and state.st_nlink == 1) or (locked is None and old):
            os.unlink(found)
    finally:
        os.close(descriptor)


def _set_permissions(temporary: Path, path: Path, mode: int) -> None:
    """Those of the old file, where there is one, otherwise `mode`: safetensors puts a private file into the place of ours."""
    with suppress(OSError):
        before = path.lstat().st_mode
        mode = before if stat.S_ISREG(before) else mode
    with suppress(OSError):
        if temporary.stat().st_mode != mode:
            temporary.chmod(stat.S_IMODE(mode))


def _sync(path: Path) -> None:
    """Have the disk hold what the system holds of a file or, where that is possible, of a folder."""
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        if not folder:
            raise


def _reason(error: BaseException, temporary: Path, path: Path) -> OSError | None:
    """The system's reason for an error in the block, where it is one of writing this file and of nothing else there."""
    if isinstance(error, CannotWrite) or not isinstance(error, Exception):
        return None  # another file's, and explained already; or a person's Ctrl-C
    if not isinstance(error, OSError):
        return _full(temporary)
    if error.filename is not None:
        return error if str(error.filename) in (str(temporary), str(path)) else None
    return error if error.errno in (*FULL, errno.EROFS, errno.EIO) else None


def _full(temporary: Path) -> OSError | None:
    """What the disk says to one more MiB: the writers of torch, SimpleITK and blosc2 hide its answer in errors of their own."""
    try:
        with temporary.open("ab") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error if error.errno in FULL else None
    return None
