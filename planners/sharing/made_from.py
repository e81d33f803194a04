"""What every preprocessed case was made from: one table per folder, written by all processes that work on it.

`made_from.jsonl` holds a line per case. A process appends its lines to a part of its own before a case is in place, so that
every finished case has one; the next command that is alone joins the parts. A line:
[case, turn, images, label, modality, stamps of their files, digest of their contents]. Of several lines of a case the one
with the highest turn counts: later attempts have higher ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from os.path import isdir, join
from typing import Any, NamedTuple

from nnunet_ssl.corpus.stamps import stamps_of
from nnunet_ssl.files.atomic import write_text

TABLE, PARTS = "made_from.jsonl", "made_from"


class Origin(NamedTuple):
    """What a case was made from; `digest` is empty until the case is finished."""

    images: list[str]
    label: str | None
    modality: str | None
    stamps: list[int]  # bytes and time of change [ns] of each file in turn: images, label
    digest: str = ""
    turn: int = 1


def origin_now(case: Mapping[str, Any], turn: int = 1) -> Origin:
    """The origin of a case of `list_images` (with `modality`, where the corpus table says it), as its files are now."""
    images, label = list(case["images"]), case["label"]
    return Origin(images, label, case.get("modality"), stamps_of([*images, label]), "", turn)


def read_origins(state: str) -> dict[str, Origin]:
    """{case: origin} of a state folder; a line that was not written to its end counts as none."""
    found: dict[str, Origin] = {}
    for name in [TABLE, *_parts(state)]:
        for case, turn, images, label, modality, stamps, digest in _rows(join(state, name)):
            if case not in found or turn >= found[case].turn:
                found[case] = Origin(images, label, modality, stamps, digest, turn)
    return found


def write_origins(state: str, origins: Mapping[str, Origin]) -> None:
    """Write the table anew and remove the parts; for a process that is alone on the folder."""
    parts = _parts(state)
    write_text("".join(_line(case, origin) for case, origin in origins.items()), join(state, TABLE))
    for name in parts:
        with suppress(FileNotFoundError):
            os.remove(join(state, name))


def needs_joining(state: str) -> bool:
    """Whether processes that are gone have left parts."""
    return bool(_parts(state))


class Part:
    """The lines of one process; `known` are the origins that were there before."""

    def __init__(self, state: str, name: str, known: Mapping[str, Origin]) -> None:
        self.path, self.known = join(state, PARTS, f"{name}.jsonl"), dict(known)

    def begin(self, case: str, files: Mapping[str, Any]) -> None:
        """Note what a case is about to be made from, before anything of it is read."""
        turn = self.known[case].turn + 1 if case in self.known else 1
        self._append(case, origin_now(files, turn))

    def finish(self, case: str, digest: str) -> None:
        """Note the content it was made from."""
        self._append(case, self.known[case]._replace(digest=digest))

    def _append(self, case: str, origin: Origin) -> None:
        self.known[case] = origin
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(case, origin))


def _line(case: str, origin: Origin) -> str:
    content = [case, origin.turn, origin.images, origin.label, origin.modality, origin.stamps, origin.digest]
    return json.dumps(content, separators=(",", ":")) + "\n"


def _parts(state: str) -> list[str]:
    folder = join(state, PARTS)
    return [join(PARTS, name) for name in sorted(os.listdir(folder))] if isdir(folder) else []


def _rows(path: str) -> list[list[Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    try:
        rows = json.loads(f"[{','.join(lines)}]")  # all at once is several times as fast
    except ValueError:
        rows = []
        for line in lines:
            with suppress(ValueError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, list) and list(map(type, row[:2])) == [str, int] and len(row) == 7]
