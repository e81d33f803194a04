"""Files that two readers would understand differently: safetensors to one, a pickle or an archive to the other."""

from __future__ import annotations

import io
import pickletools
import tarfile
import zipfile
from pathlib import Path

# A pickle runs something only after it has imported something, which these operations do.
IMPORTS = frozenset({"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
LENGTH = 8  # bytes at the beginning of a safetensors file that say how long its header is; the last of them are zero


class Bounded(io.BufferedReader):
    """A file that, asked for more bytes than it has left, does not set memory aside for them first."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._end = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """At most what is left."""
        left = max(0, self._end - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def also_something_else(path: Path) -> str | None:
    """What else than safetensors a file is to another reader: "a pickle", ...; None for an honest one."""
    if runs_as_pickle(path):
        return "a pickle"
    if is_tar(path):
        return "a tar archive"
    return "a zip archive" if ends_as_zip(path) else None


def runs_as_pickle(path: Path) -> bool:
    """Whether a reader of pickles that starts at the first byte of a safetensors file would come to import something.

    In an honest file it ends at the zeros in the header's length, which are no operation, and in no name of a module.
    """
    with Bounded(path) as file:
        try:
            for opcode, argument, position in pickletools.genops(file):
                if opcode.name in IMPORTS:
                    return (position or 0) >= LENGTH and "\0" not in str(argument)
        except (ValueError, OverflowError):
            pass
    return False


def is_tar(path: Path) -> bool:
    """Whether torch, which tries this first for files that are no zip, would find a tar archive."""
    try:
        with Bounded(path) as file, tarfile.open(fileobj=file, mode="r:"):
            return True
    except (tarfile.TarError, OSError, ValueError, EOFError):
        return False


def has_table(path: Path) -> bool:
    """Whether a zip archive's end record lies near the end of a file; Python's own question raises for some damaged ones."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def ends_as_zip(path: Path) -> bool:
    """Whether a table of contents lies at the end, and not just its four magic bytes among the numbers of a tensor."""
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError, OverflowError):
        return False
