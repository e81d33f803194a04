"""left_out_images.json: the cases that could not be used, and why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from os.path import isfile, join
from typing import Any

from nnunet_ssl.corpus.address import files_of
from nnunet_ssl.corpus.images import shortened
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import BadFile, read_json

FILE = "left_out_images.json"


def describe(case: Mapping[str, Any], reason: str, step: str) -> dict[str, Any]:
    """The entry of a case: its files, the reason, the step that found it, and the newest file's time of change."""
    return {"files": list(case["images"]), "reason": reason, "step": step, "modified": newest(case["images"])}


def newest(files: Sequence[str]) -> float:
    """Time of change of the newest file, in seconds since 1970; 0 when there is none."""
    return max((os.path.getmtime(f) for address in files for f in files_of(address) if isfile(f)), default=0.0)


def read_left_out(folder: str) -> dict[str, dict[str, Any]]:
    """{case: entry} of a dataset's folder in nnUNet_preprocessed."""
    path = join(folder, FILE)
    if not isfile(path):
        return {}
    content = read_json(path)
    fields = ("files", "reason", "step", "modified")
    if not isinstance(content, dict) or not all(
        isinstance(e, dict) and all(f in e for f in fields) for e in content.values()
    ):
        raise BadFile(f"{path}: not a list of images that are left out. Remove it: they will be tried again.")
    return content


def update_left_out(folder: str, examined: Iterable[str], found: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the entries of the `examined` cases by those in `found`; nothing else changes."""
    examined = set(examined)
    known = {case: entry for case, entry in read_left_out(folder).items() if case not in examined}
    known.update({case: dict(entry) for case, entry in found.items()})
    if known or isfile(join(folder, FILE)):
        write_json(known, join(folder, FILE))


def still_left_out(folder: str, cases: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The recorded cases whose files have not changed since."""
    recorded = read_left_out(folder)
    return {
        name
        for name, entry in recorded.items()
        if name in cases and entry["files"] == cases[name]["images"] and newest(entry["files"]) <= entry["modified"]
    }


def report(found: Mapping[str, Mapping[str, Any]], num_cases: int, folder: str) -> str:
    """What to tell the user about cases that were left out; empty when there are none."""
    if not found:
        return ""
    lines = [f"{case}: {entry['reason']}" for case, entry in sorted(found.items())]
    return f"Left out {len(found)} of {num_cases} cases, listed in {join(folder, FILE)}:\n{shortened(lines)}"
