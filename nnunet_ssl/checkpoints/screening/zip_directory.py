"""The table of contents of a zip archive, read so strictly that no two readers can find different files in it.

Readers of zip archives search for the table from the end, and believe it or the headers before each member; where these
disagree, Python's zipfile and torch's reader see different files. Accepted is what torch and Python write: one table at its
stated place at the very end, members one after the other without gaps, headers that say what the table says.
Format: APPNOTE.TXT 6.3.10 of PKWARE, sections 4.3.7 to 4.3.16.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nnunet_ssl.checkpoints.screening.pickle_screen import DamagedError, ScreenError

MAGIC = b"PK\x03\x04"
END, END64, LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
ENTRY, LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
MOST_MEMBERS = 200_000
NEWEST = 45  # version of the format that is needed for 64-bit sizes
WIDE16, WIDE32 = 0xFFFF, 0xFFFFFFFF  # "see the 64-bit fields"
ENCRYPTED, DESCRIBED_BEHIND = 1, 8  # bits of a member's flags
UNCLEAR = "has a table of contents that readers can understand differently"


@dataclass(frozen=True, slots=True)
class Member:
    """A stored file within an archive: its bytes lie at `start` in the file."""

    name: str
    size: int
    checksum: int
    start: int

    def read(self, path: Path) -> bytes:
        """Its content; raises DamagedError when the checksum is wrong."""
        with path.open("rb") as file:
            file.seek(self.start)
            content = file.read(self.size)
        if zlib.crc32(content) != self.checksum:
            raise DamagedError(f"Bad CRC-32 for file {self.name[:200]!r}")
        return content


@dataclass(frozen=True, slots=True)
class _Entry:
    name: bytes
    flags: int
    checksum: int
    size: int
    offset: int


def read_members(path: Path) -> list[Member]:
    """All members of an archive, none of them overlapping another.

    Raises ScreenError for an archive that is not as torch writes them, DamagedError for one that is cut.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start, length, number = _find_table(file, size)
        file.seek(start)
        entries = _entries(file.read(length), number)
        members, position = [], 0
        for entry in sorted(entries, key=lambda entry: entry.offset):
            if entry.offset != position:
                raise ScreenError(f"{UNCLEAR}: its members overlap or leave gaps")
            member, position = _member(file, entry, start)
            members.append(member)
    if position != start:
        raise ScreenError(f"{UNCLEAR}: there is something between its members and the table")
    names = {member.name.casefold() for member in members}  # torch's reader does not tell A from a
    if len(names) < len(members):
        raise ScreenError("names a member twice in its table of contents")
    return members


def _find_table(file: IO[bytes], size: int) -> tuple[int, int, int]:
    """(start, bytes, members) of the table that ends where the end records begin, which end with the file."""
    if size < END.size:
        raise DamagedError("it is cut")
    end = size - END.size
    magic, disk, first_disk, here, number, length, start, comment = _unpack(file, END, end)
    if magic != b"PK\x05\x06":
        raise DamagedError("there is no table of contents at its end")
    narrow = (here, number, length, start)
    if end >= LOCATOR.size + END64.size:
        magic, disk64, place, disks = _unpack(file, LOCATOR, end - LOCATOR.size)
        if magic == b"PK\x06\x07":
            end -= LOCATOR.size + END64.size
            magic, left, _, _, disk, first_disk, here, number, length, start = _unpack(file, END64, end)
            wide = (here, number, length, start)
            limits = (WIDE16, WIDE16, WIDE32, WIDE32)
            agree = all(a in (b, limit) for a, b, limit in zip(narrow, wide, limits, strict=True))
            if magic != b"PK\x06\x06" or (place, disk64, disks, left) != (end, 0, 1, 44) or not agree:
                raise ScreenError(f"{UNCLEAR}: its end records disagree")
            narrow = (0, 0, 0, 0)
    if disk or first_disk or comment or here != number or WIDE16 in narrow[:2] or WIDE32 in narrow[2:]:
        raise ScreenError(f"{UNCLEAR}: its end record is not as torch writes it")
    if start + length != end or number > min(MOST_MEMBERS, length // ENTRY.size):
        raise ScreenError(f"{UNCLEAR}: it does not lie where the end record says")
    return start, length, number


def _entries(table: bytes, number: int) -> list[_Entry]:
    entries, position = [], 0
    for _ in range(number):
        if position + ENTRY.size > len(table):
            raise DamagedError("its table of contents is cut")
        fields = ENTRY.unpack_from(table, position)
        magic, _, version, flags, method, _, _, checksum, packed, size, named, further, comment, disk = fields[:14]
        attributes, offset = fields[15:]
        position += ENTRY.size
        name, extra = table[position : position + named], table[position + named : position + named + further]
        position += named + further
        # what is marked as a folder is left unread by torch, whose tensors then hold whatever lay in the memory
        folder = attributes & WIDE16 or name.endswith((b"/", b"\\"))
        if magic != b"PK\x01\x02" or comment or disk or folder or version > NEWEST or position > len(table):
            raise ScreenError(f"{UNCLEAR}: an entry is not as torch writes it")
        if flags & ENCRYPTED:
            raise ScreenError("is encrypted")
        size, packed, offset = _widened((size, packed, offset), extra)
        if method or packed != size:
            raise ScreenError(f"has a compressed member, {_text(name)[:200]}; torch never compresses")
        entries.append(_Entry(name, flags, checksum, size, offset))
    if position != len(table):
        raise ScreenError(f"{UNCLEAR}: it is longer than its entries")
    return entries


def _member(file: IO[bytes], entry: _Entry, end: int) -> tuple[Member, int]:
    """A member whose own header says what the table says, and where the next one begins."""
    header = _unpack(file, LOCAL, entry.offset)
    magic, _, flags, method, _, _, checksum, packed, size, named, further = header
    name, extra = file.read(named), file.read(further)
    size, packed = _widened((size, packed), extra)
    start = entry.offset + LOCAL.size + named + further
    behind = bool(flags & DESCRIBED_BEHIND)
    stated = (checksum, packed, size)
    agree = stated == (entry.checksum, entry.size, entry.size) or (behind and stated == (0, 0, 0))
    if magic != MAGIC or (name, flags, method) != (entry.name, entry.flags, 0) or not agree:
        raise ScreenError(f"{UNCLEAR}: the header of {_text(entry.name)[:200]} says something else")
    after = start + entry.size
    if after > end:
        raise ScreenError("declares more bytes than the file has")
    if behind:
        after += _descriptor(file, entry, after)
    return Member(_text(entry.name), entry.size, entry.checksum, start), after


def _descriptor(file: IO[bytes], entry: _Entry, start: int) -> int:
    """Bytes of what stands behind a member's data and repeats checksum and sizes, in 32 or 64 bits."""
    file.seek(start)
    found = file.read(24)
    for form in ("<4s3L", "<4sL2Q"):
        wanted = struct.calcsize(form)
        if len(found) >= wanted and (form == "<4sL2Q" or entry.size < WIDE32):
            expected = (b"PK\x07\x08", entry.checksum, entry.size, entry.size)
            if struct.unpack(form, found[:wanted]) == expected:
                return wanted
    raise ScreenError(f"{UNCLEAR}: what follows {_text(entry.name)[:200]} says something else")


def _widened(values: tuple[int, ...], extra: bytes) -> tuple[int, ...]:
    """The values, those at their limit from the 64-bit fields among `extra`, which must hold just these."""
    found, position = None, 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        body = extra[position + 4 : position + 4 + length]
        if len(body) < length or (kind == 1 and found is not None):
            raise ScreenError(f"{UNCLEAR}: its further fields do not fit together")
        found = body if kind == 1 else found
        position += 4 + length
    wide = [value == WIDE32 for value in values]
    if len(found or b"") != 8 * sum(wide):
        raise ScreenError(f"{UNCLEAR}: its 64-bit fields do not fit its sizes")
    numbers = iter(struct.unpack(f"<{sum(wide)}Q", found or b""))
    return tuple(next(numbers) if is_wide else value for value, is_wide in zip(values, wide, strict=True))


def _unpack(file: IO[bytes], form: struct.Struct, position: int) -> tuple[Any, ...]:
    file.seek(position)
    content = file.read(form.size)
    if len(content) < form.size:
        raise DamagedError("it is cut")
    return form.unpack(content)


def _text(name: bytes) -> str:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ScreenError(f"has a member whose name is no text, {name[:200]!r}") from error
    if not text.isprintable():  # a zero ends a name to one reader and not to the other
        raise ScreenError(f"has a member with an unprintable name, {text[:200]!r}")
    return text
