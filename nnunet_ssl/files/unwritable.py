"""What to tell a person whose folder is full or must not be written."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from nnunet_ssl.errors import CannotWrite

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
# nnU-Net's folders, and what moves them.
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def cannot_write(
    path: str | os.PathLike[str], error: OSError, needed: int | None = None, place: Path | None = None
) -> CannotWrite:
    """The error to raise when writing `path` failed with `error`; see `why_unwritable`."""
    return CannotWrite(error.errno, why_unwritable(path, error, needed, place), path=path)


def why_unwritable(
    path: str | os.PathLike[str], error: OSError, needed: int | None = None, place: Path | None = None
) -> str:
    """One line: what cannot be written, why, the bytes free, and the way out.

    needed: bytes the file takes, where that is known. place: the folder to blame, by default the file's.
    """
    path = Path(path)
    folder = place or path.parent
    what = path.parent if path.name == "..." else path
    start = f"{what} cannot be written: {error.strerror or error}."
    if error.errno in FULL:
        wanted = "" if needed is None else f", {needed:,} bytes are needed"
        return (
            f"{start} The folder {folder} has {free_bytes(folder):,} bytes free{wanted}. Free space or raise the quota "
            f"there{_elsewhere(path)}, and type the same command again."
        )
    if error.errno in FORBIDDEN:
        return (
            f"{start} The folder {folder} must be writable for this user: change its permissions{_elsewhere(path)}, and type "
            "the same command again."
        )
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return f"{start} Make the folder {folder} first (mkdir -p), or name another one."
    return f"{start} Check the folder {folder}, and type the same command again."


def explanation(error: BaseException) -> str | None:
    """One line for an error that comes of a full or read-only disk, whoever raised it; None for any other."""
    if isinstance(error, CannotWrite):
        return str(error)
    if not isinstance(error, OSError) or error.errno not in (*FULL, *FORBIDDEN):
        return None
    if error.filename is not None:
        path = Path(os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename))
        reading = error.errno not in (*FULL, errno.EROFS) and os.access(path.parent, os.W_OK)
        return None if reading else why_unwritable(path, error)
    if error.errno not in FULL:
        return None
    rooms = [
        f"{v} ({os.environ[v]}) has {free_bytes(os.environ[v]):,} bytes free" for v in VARIABLES if os.environ.get(v)
    ]
    return f"{error.strerror}. {', '.join(rooms)}. Free space there, and type the same command again."


def free_bytes(folder: str | os.PathLike[str]) -> int:
    """Bytes that are free for this user where `folder` is, or would be; 0 where nobody can tell."""
    for place in (Path(folder), *Path(folder).absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


def _elsewhere(path: Path) -> str:
    """The setting that would put the file onto another disk, where there is one."""
    absolute = path.absolute()
    for variable in VARIABLES:
        root = os.environ.get(variable)
        if root and absolute.is_relative_to(Path(root).absolute()):
            return f", or point {variable} to another disk"
    return ", or name another folder"
