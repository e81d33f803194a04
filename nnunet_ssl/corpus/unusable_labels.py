"""unusable_labels.json: labels that cannot be read or do not fit their image. The images are pre-trained on all the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os.path import isfile, join
from typing import Any

from nnunet_ssl.corpus.address import split_masks
from nnunet_ssl.corpus.stamps import MISSING, stamp
from nnunet_ssl.errors import BadFile
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json

FILE = "unusable_labels.json"


def usable_labels(folder: str, cases: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{case: label file} of the cases that have a label which nothing is known against.

    `folder` is the data set's in nnUNet_preprocessed. Masks of an imported corpus are no labels. A label that was replaced
    since it was found bad counts again.
    """
    bad = read_unusable(folder)
    labels = {c: f["label"] for c, f in cases.items() if f["label"] is not None and not split_masks(f["label"])}
    return {case: label for case, label in labels.items() if case not in bad or not _is_same(label, bad[case])}


def note_unusable(
    folder: str, examined: Iterable[str], found: Mapping[str, str], cases: Mapping[str, Mapping[str, Any]]
) -> None:
    """Replace the entries of the `examined` cases by those in `found`, {case: reason}; for whoever holds the data set's lock."""
    examined = set(examined)
    known = {case: entry for case, entry in read_unusable(folder).items() if case not in examined}
    for case, reason in found.items():
        label = cases[case]["label"]
        known[case] = {"label": label, "reason": reason, "stamp": list(stamp(label))}
    if known or isfile(join(folder, FILE)):
        write_json(known, join(folder, FILE))


def read_unusable(folder: str) -> dict[str, dict[str, Any]]:
    """{case: its label, the reason, and the label's size and time}; empty where nothing was found."""
    path = join(folder, FILE)
    if not isfile(path):
        return {}
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(e, dict) and "label" in e for e in content.values()):
        raise BadFile(f"{path}: not a list of labels. Remove it: they will be looked at again.")
    return content


def _is_same(label: str, entry: Mapping[str, Any]) -> bool:
    now = stamp(label)
    return now == MISSING or (entry["label"] == label and list(now) == entry.get("stamp"))
