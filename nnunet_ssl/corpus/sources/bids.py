"""Images of a BIDS data set (bids-specification.readthedocs.io): subjects, sessions, sidecars, masks of derivatives."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from os.path import abspath, basename, dirname, isfile, join, relpath
from typing import Any

from nnunet_ssl.corpus.reader import ending_of
from nnunet_ssl.corpus.sources.bids_masks import assign_masks, find_masks
from nnunet_ssl.corpus.sources.csv_table import read_rows
from nnunet_ssl.corpus.sources.found import Found, Mistake, frame
from nnunet_ssl.corpus.sources.walking import walk_files
from nnunet_ssl.errors import BadFile, CorpusError
from nnunet_ssl.files.entering import read_json, why_no_file

NO_IMAGE = re.compile(r"(?:.*mask|msk|dseg|probseg|xfm|stim)", re.IGNORECASE)  # suffixes
MAX_SIDECAR = 1 << 24  # bytes
# Of the sidecars' fields, those that describe the image; a corpus of 100,000 images with all of them fills the memory.
SIDECAR_FIELDS = (
    "Manufacturer",
    "ManufacturersModelName",
    "MagneticFieldStrength",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "SliceThickness",
    "ContrastBolusIngredient",
    "BodyPartExamined",
    "SeriesDescription",
    "MRAcquisitionType",
)


def find_in_bids(source: str) -> Found:
    """The images of all subjects of a BIDS data set with what participants.tsv and the sidecars say about them.

    Subjects of participants.tsv become columns of their images, sidecar fields too (those of SIDECAR_FIELDS, by the
    inheritance principle). Masks come from sub-*/**/*_mask, *_defacemask and from derivatives/. Raises CorpusError when
    there is no subject.
    """
    root = abspath(source)
    subjects = sorted(e.name for e in os.scandir(root) if e.name.startswith("sub-") and e.is_dir())
    if not subjects:
        raise CorpusError(f"{source} has no folder sub-<label>: it is no BIDS data set. As a folder: --kind folder")
    participants, mistakes, notes = _participants(root, subjects)
    sidecars = Sidecars(root)
    rows = []
    for subject in subjects:
        for path in walk_files(join(root, subject)):
            row = _row(path, root, subject, mistakes) if ending_of(path) else None
            if row is not None:
                rows.append(row | participants.get(subject, {}) | sidecars.of(row["path"]))
    mistakes += sidecars.mistakes
    masks, found = find_masks(root)
    mistakes += found
    unassigned = assign_masks(rows, masks)
    if unassigned:
        notes.append(
            f"{source}: {len(unassigned)} masks belong to no single image, e.g. {relpath(unassigned[0], root)}."
        )
    for row in rows:
        row.pop("entities")
    if not rows and not mistakes:
        raise CorpusError(f"{source} has {len(subjects)} subjects and no image.")
    return Found(frame(rows), mistakes, notes)


def parse_name(name: str) -> tuple[dict[str, str], str]:
    """({"sub": "01", "ses": "2"}, "T1w") of sub-01_ses-2_T1w.nii.gz."""
    parts = name[: -len(ending_of(name) or "")].split("_")
    pairs = (part.partition("-") for part in parts[:-1])
    return {key: value for key, hyphen, value in pairs if hyphen}, parts[-1]


def _row(path: str, root: str, subject: str, mistakes: list[Mistake]) -> dict[str, Any] | None:
    where = relpath(path, root)
    entities, suffix = parse_name(basename(path))
    if NO_IMAGE.fullmatch(suffix):
        return None
    session = next((part for part in where.split(os.sep)[1:-1] if part.startswith("ses-")), None)
    reasons = []
    if "-" in suffix:
        reasons.append("its name ends without a suffix such as _T1w")
    if f"sub-{entities.get('sub')}" != subject:
        reasons.append(f"its name should begin with {subject}_, as its folder does")
    if session is not None and f"ses-{entities.get('ses')}" != session:
        reasons.append(f"its name should contain {session}, as its folder does")
    if missing := why_no_file(path):
        reasons.append(missing)
    mistakes += [Mistake(where, reason) for reason in reasons]
    if reasons:
        return None
    return {
        "name": f"{basename(root)}__{basename(path)[: -len(ending_of(path) or '')]}",
        "path": path,
        "subject": subject,
        "session": session or (f"ses-{entities['ses']}" if "ses" in entities else None),
        "modality": suffix,
        "dataset": basename(root),
        "datatype": basename(dirname(path)),
        "entities": entities,
        "where": where,
    }


def _participants(root: str, subjects: list[str]) -> tuple[dict[str, dict[str, Any]], list[Mistake], list[str]]:
    """({subject: its row in participants.tsv}, mistakes, notes)."""
    path = join(root, "participants.tsv")
    if not isfile(path):
        return {}, [], [f"{root} has no participants.tsv."]
    table, mistakes = read_rows(path)
    if "participant_id" not in table:
        columns = ", ".join(c for c in table.columns if c != "where")
        return {}, [*mistakes, Mistake("participants.tsv", f"no column participant_id; it has: {columns}")], []
    found: dict[str, dict[str, Any]] = {}
    for row in table.to_dict("records"):
        subject, where = row.pop("participant_id"), row.pop("where")
        if not isinstance(subject, str) or not subject.startswith("sub-"):
            mistakes.append(Mistake(where, f"participant_id is {subject!r}, expected sub-<label>"))
        elif subject in found:
            mistakes.append(Mistake(where, f"{subject} is listed before"))
        else:
            found[subject] = {_column(key): value for key, value in row.items()}
    absent = sorted(found.keys() - set(subjects))
    unlisted = [subject for subject in subjects if subject not in found]
    mistakes += [Mistake("participants.tsv", f"{subject} has a folder and no row") for subject in unlisted]
    return found, mistakes, [f"{len(absent)} participants have no folder, e.g. {absent[0]}."] if absent else []


def _column(name: str) -> str:
    """A name that does not hide one of the table's own columns."""
    return f"participant_{name}" if name in ("path", "subject", "session", "modality", "dataset", "name") else name


class Sidecars:
    """The JSON files of a BIDS tree, each read once, and what they say about an image."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.mistakes: list[Mistake] = []
        self.listed = cache(self._list)

    def of(self, path: str) -> dict[str, Any]:
        """The fields of SIDECAR_FIELDS for an image: those in deeper folders and longer names win."""
        entities, suffix = parse_name(basename(path))
        folders = [self.root]
        for part in relpath(dirname(path), self.root).split(os.sep):
            folders.append(join(folders[-1], part))
        values: dict[str, Any] = {}
        for folder in folders:
            for given, fields in self.listed(folder, suffix):
                if given.items() <= entities.items():
                    values |= fields
        return values

    def _list(self, folder: str, suffix: str) -> list[tuple[Mapping[str, str], dict[str, Any]]]:
        """(entities, fields) of the sidecars for `suffix` in a folder, the most general first."""
        found = []
        for name in sorted(os.listdir(folder)):
            stem = name.removesuffix(".json")
            if stem == name or stem.rpartition("_")[2] != suffix:
                continue
            entities = {k: v for k, hyphen, v in (part.partition("-") for part in stem.split("_")[:-1]) if hyphen}
            found.append((entities, self._read(join(folder, name))))
        return sorted(found, key=lambda pair: len(pair[0]))

    def _read(self, path: str) -> dict[str, Any]:
        where = relpath(path, self.root)
        try:
            content = read_json(path, MAX_SIDECAR)
        except BadFile as error:
            self.mistakes.append(Mistake(where, str(error).removeprefix(f"{path}: ")))
            return {}
        if not isinstance(content, dict):
            self.mistakes.append(Mistake(where, f"holds a {type(content).__name__}, expected an object"))
            return {}
        plain = {name: content[name] for name in SIDECAR_FIELDS if isinstance(content.get(name), (str, int, float))}
        return {name: value for name, value in plain.items() if not isinstance(value, bool)}
