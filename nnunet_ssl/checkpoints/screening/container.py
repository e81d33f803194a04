"""Check a checkpoint file's container (zip, old torch format, safetensors) before anything in it is opened."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ssl.checkpoints.screening.ambiguity import Bounded, also_something_else, is_tar
from nnunet_ssl.checkpoints.screening.pickle_screen import DamagedError, PickleScreen, ScreenError

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
LONGEST_HEADER = 100_000_000  # bytes, as in safetensors itself
SAFETENSORS_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as a safetensors file does: the length of a JSON header, and its opening brace."""
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) < 9 or start[8:] != b"{":
        return False
    return int(struct.unpack("<Q", start[:8])[0]) <= min(LONGEST_HEADER, path.stat().st_size - 8)


def check_safetensors(path: Path) -> None:
    """Raise ScreenError for a header that names a tensor twice, nests too deep, or holds types that are no weights.

    And for a file that is something else as well, which another reader would open in its place.
    """
    other = also_something_else(path)
    if other is not None:
        raise ScreenError(f"is a safetensors file and {other} at once: readers understand it differently")
    with path.open("rb") as file:
        header = file.read(struct.unpack("<Q", file.read(8))[0])
    try:
        tensors = json.loads(header, object_pairs_hook=_without_repetition)
    except RecursionError as error:
        raise ScreenError("nests its header too deep") from error
    except ValueError as error:
        raise ScreenError(f"has a header that is no JSON ({error})") from error
    for name, description in tensors.items():
        kind = description.get("dtype") if isinstance(description, dict) else None
        if name != "__metadata__" and kind not in SAFETENSORS_TYPES:
            raise ScreenError(f"holds values of type {kind!r} in {name[:200]}, expected {', '.join(SAFETENSORS_TYPES)}")


def _without_repetition(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ScreenError(f"names {next(n for n in names if names.count(n) > 1)[:200]} twice in its header")
    return found


def check_torch(path: Path) -> None:
    """Raise ScreenError for a torch file that must not be opened, DamagedError for one that cannot be followed."""
    if zipfile.is_zipfile(path):
        _check_zip(path)
        return
    if is_tar(path):
        raise ScreenError("is a tar archive. Unpack it first if there are checkpoints in it")
    size = path.stat().st_size
    screen = PickleScreen(lambda key: size, size)
    with Bounded(path) as file:
        for part in range(5):  # magic number, version, system, content, keys of the storages
            if screen.screen(file) != TORCH_MAGIC and part == 0:
                raise DamagedError("it does not begin as torch's files do")
        screen.check_total()


def _check_zip(path: Path) -> None:
    """Members must be stored as they are, once, inside the file: torch writes them so, and nothing then can expand."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            record = _check_members(members, size)
            content = archive.read(record) if record else None
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DamagedError(str(error)[:200]) from error
    if record is None or content is None:
        return  # no file of torch: its reader says so
    root = record.filename.removesuffix("data.pkl")
    held = {member.filename: member.file_size for member in members}
    screen = PickleScreen(lambda key: held.get(f"{root}data/{key}", 0), size)
    screen.screen(io.BytesIO(content))
    screen.check_total()


def _check_members(members: Sequence[zipfile.ZipInfo], size: int) -> zipfile.ZipInfo | None:
    """The member with the pickle, None where there is not exactly one."""
    if len({member.filename for member in members}) < len(members):
        raise ScreenError("names a member twice in its table of contents")
    for member in members:
        name = member.filename
        if name.startswith(("/", "\\")) or ":" in name or ".." in name.replace("\\", "/").split("/"):
            raise ScreenError(f"has a member that points outside of the archive, {name[:200]!r}")
    records = [member for member in members if member.filename.endswith("/data.pkl")]
    if len(records) != 1:
        return None
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise ScreenError(f"has a compressed member, {member.filename[:200]}; torch never compresses")
        if member.flag_bits & 1:
            raise ScreenError("is encrypted")
    if sum(member.file_size for member in members) > size:
        raise ScreenError("declares more bytes than the file has")
    return records[0]
