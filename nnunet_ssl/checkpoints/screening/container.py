"""Check a checkpoint file's container (zip, old torch format, safetensors) before anything in it is opened."""

from __future__ import annotations

import io
import json
import pickletools
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from nnunet_ssl.checkpoints.screening.ambiguity import Bounded, also_something_else, ends_as_zip, is_tar
from nnunet_ssl.checkpoints.screening.pickle_screen import MOST_AXES, STRINGS, DamagedError, PickleScreen, ScreenError
from nnunet_ssl.checkpoints.screening.zip_directory import MAGIC, read_members

# the operations that make a list of texts
KEY_LIST = frozenset({"PROTO", "EMPTY_LIST", "BINPUT", "LONG_BINPUT", "MARK", "APPEND", "APPENDS", "STOP"}) | STRINGS
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
LONGEST_HEADER = 10_000_000  # bytes; some hundred per tensor, and a log, are a hundredth of it
LONGEST_PICKLE = 256_000_000  # bytes, without the tensors
SAFETENSORS_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as a safetensors file does: the length of a JSON header, and its opening brace."""
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) < 9 or start[8:] != b"{":
        return False
    return int(struct.unpack("<Q", start[:8])[0]) <= path.stat().st_size - 8


def check_safetensors(path: Path) -> None:
    """Raise ScreenError for a header that names a tensor twice, nests too deep, or holds types that are no weights.

    And for a file that is something else as well, which another reader would open in its place.
    """
    other = also_something_else(path)
    if other is not None:
        raise ScreenError(f"is a safetensors file and {other} at once: readers understand it differently")
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > LONGEST_HEADER:
            raise ScreenError(f"has a header of {length:,} bytes, more than a checkpoint needs")
        header = file.read(length)
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
        axes = description.get("shape") if name != "__metadata__" else None
        if isinstance(axes, list) and len(axes) > MOST_AXES:
            raise ScreenError(f"declares a tensor with {len(axes):,} axes, more than {MOST_AXES}, {name[:200]}")


def _without_repetition(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ScreenError(f"names {next(n for n in names if names.count(n) > 1)[:200]} twice in its header")
    return found


def is_zip(path: Path) -> bool:
    """Whether torch takes a file for a zip archive: by its first bytes, not by what lies at its end."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def check_torch(path: Path) -> None:
    """Raise ScreenError for a torch file that must not be opened, DamagedError for one that cannot be followed."""
    if is_zip(path):
        _check_zip(path)
        return
    if is_tar(path):
        raise ScreenError("is a tar archive. Unpack it first if there are checkpoints in it")
    if ends_as_zip(path):
        raise ScreenError("is a zip archive with something before it: readers understand it differently")
    size = path.stat().st_size
    screen = PickleScreen(lambda key: size, size)
    with Bounded(path) as file:
        for part in range(4):  # magic number, version, system, content
            if screen.screen(file) != TORCH_MAGIC and part == 0:
                raise DamagedError("it does not begin as torch's files do")
        screen.check_total()
        _check_storages(file, screen.storages, size)


def _check_storages(file: IO[bytes], storages: Mapping[str, int], size: int) -> None:
    """Raise DamagedError unless the keys of all storages, and their bytes, follow to the end of an old file.

    torch leaves a tensor whose bytes are not there as it finds it in the memory.
    """
    try:
        operations = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(file)]
    except (ValueError, OverflowError) as error:
        raise DamagedError(str(error)[:200]) from error
    keys = [str(argument) for name, argument in operations if name in STRINGS]
    if {name for name, _ in operations} - KEY_LIST or sorted(keys) != sorted(storages):
        raise DamagedError("it does not list the bytes of its tensors")
    if file.tell() + sum(8 + storages[key] for key in keys) != size:
        raise DamagedError("the bytes of its tensors are not all there, or followed by others")


def _check_zip(path: Path) -> None:
    """Members must be stored as they are, once, in one folder, inside the file: torch writes them so."""
    members = {member.name: member for member in read_members(path)}
    for name in members:
        if name.startswith(("/", "\\")) or ":" in name or ".." in name.replace("\\", "/").split("/"):
            raise ScreenError(f"has a member that points outside of the archive, {name[:200]!r}")
    records = [name for name in members if name.endswith("/data.pkl")]
    roots = {name.partition("/")[0] for name in members}
    if not records:
        raise DamagedError("there is no data.pkl in it")
    if len(roots) != 1 or records != [f"{next(iter(roots))}/data.pkl"]:
        raise ScreenError(
            "has members beside the folder torch writes, or pickles below it: readers take different ones"
        )
    (root,), (record,) = roots, records
    if members[record].size > LONGEST_PICKLE:
        raise ScreenError(f"describes its tensors in {members[record].size:,} bytes, more than a checkpoint needs")
    size = path.stat().st_size

    def bytes_of(key: str) -> int:
        member = members.get(f"{root}/data/{key}")
        return 0 if member is None else member.size

    screen = PickleScreen(bytes_of, size, exact=True)
    screen.screen(io.BytesIO(members[record].read(path)))
    screen.check_total()
