"""left_out_images.json: the cases that could not be used, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os.path import isfile, join
from typing import Any

from nnunet_ssl.corpus.images import shortened
from nnunet_ssl.corpus.stamps import stamps_of
from nnunet_ssl.errors import BadFile
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.files.torn import is_whole

FILE = "left_out_images.json"


def left_out_row(case: Mapping[str, Any], reason: str, step: str) -> dict[str, Any]:
    """The entry of a case: its files with size and time of change, the reason, and the step that found it."""
    return {"files": _files(case), "reason": reason, "step": step, "stamps": stamps_of(_files(case))}


def _files(case: Mapping[str, Any]) -> list[str]:
    return [*case["images"], *([case["label"]] if case.get("label") else [])]


def read_left_out(folder: str) -> dict[str, dict[str, Any]]:
    """{case: entry} of a dataset's folder in nnUNet_preprocessed."""
    path = join(folder, FILE)
    if not is_whole(path):
        return {}
    content = read_json(path)
    fields = ("files", "reason", "step")
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
    """The recorded cases whose files have not changed since, in whichever direction."""
    recorded = read_left_out(folder)
    return {
        name
        for name, entry in recorded.items()
        if name in cases and entry["files"] == _files(cases[name]) and entry.get("stamps") == stamps_of(entry["files"])
    }


def report(found: Mapping[str, Mapping[str, Any]], num_cases: int, folder: str) -> str:
    """What to tell the user about cases that were left out; empty when there are none."""
    if not found:
        return ""
    lines = [f"{case}: {entry['reason']}" for case, entry in sorted(found.items())]
    return f"Left out {len(found)} of {num_cases} cases, listed in {join(folder, FILE)}:\n{shortened(lines)}"


def clear_left_out(folder: str, step: str | None = None) -> None:
    """Forget what was left out, or what one step left out: every image is tried again."""
    known = read_left_out(folder)
    kept = {case: entry for case, entry in known.items() if step is not None and entry.get("step") != step}
    if kept != known:
        write_json(kept, join(folder, FILE))
