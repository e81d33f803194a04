"""Folders that shall be written to: found to be full or read-only before the work begins, and explained where it stops."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nnunet_ssl.errors import CannotWrite
from nnunet_ssl.files.unwritable import FORBIDDEN, FULL, cannot_write

Where = str | os.PathLike[str]

PROBE = 4096  # bytes: a folder may take a name and no content


def require_writable(*folders: Where) -> None:
    """Raise CannotWrite for the first of these folders in which this user cannot write a file now.

    A folder that is not there yet is tried where it would be made; nothing is left behind.
    """
    for folder in folders:
        place = existing(folder)
        try:
            _probe(place, PROBE)
        except OSError as error:
            raise cannot_write(Path(folder, "..."), error, place=place) from error


def is_writable(folder: Where) -> bool:
    """Whether `require_writable` would find nothing."""
    try:
        require_writable(folder)
    except CannotWrite:
        return False
    return True


def existing(folder: Where) -> Path:
    """The folder, or the nearest one around it that is there."""
    path = Path(folder).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


@contextmanager
def explaining(folder: Where) -> Iterator[None]:
    """Turn what goes wrong in the block because `folder` is full or read-only into CannotWrite.

    For libraries that write several files, or hide the system's answer in errors of their own: after any other error the
    folder is asked for room once more.
    """
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        if error.errno in (*FULL, *FORBIDDEN, errno.EIO):
            raise cannot_write(error.filename or Path(folder, "..."), error) from error
        raise
    except Exception as error:
        reason = _no_room(folder)
        if reason is not None:
            raise cannot_write(Path(folder, "..."), reason) from error
        raise


def _no_room(folder: Where) -> OSError | None:
    try:
        _probe(existing(folder), 1 << 20)
    except OSError as error:
        return error if error.errno in (*FULL, *FORBIDDEN) else None
    return None


def _probe(folder: Path, size: int) -> None:
    """Write and remove a file of `size` bytes."""
    path = folder / f".probe.{secrets.token_hex(4)}.tmp"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    finally:
        with suppress(OSError):
            path.unlink()
