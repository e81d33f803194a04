"""DICOM series among files: an image each, with what their headers say of patient, study and modality."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from os.path import basename, dirname, relpath
from typing import Any

from nnunet_ssl.corpus.formats.dicom import MODALITY, series_in, series_tags
from nnunet_ssl.corpus.subjects import MODALITY as MODALITY_NAME

PATIENT, STUDY_DATE, STUDY, NUMBER, DESCRIPTION = "0010|0020", "0008|0020", "0020|000d", "0020|0011", "0008|103e"
FRAMES = "0028|0008"  # in one file
IMAGES = (
    "CT",
    "MR",
    "PT",
    "NM",
    "US",
    "XA",
    "CR",
    "DX",
    "MG",
    "OT",
)  # others are reports, plans, contours, segmentations
FIELD_NAMES = {"PT": "PET"}
SHORT = 8  # characters of a study's UID where it has no date


def find_series(files: Sequence[str], root: str) -> tuple[list[dict[str, Any]], list[str]]:
    """(a row per series whose volume can be read, notes on what was left alone) of the DICOM files below `root`.

    A row's path is the file of the first slice: it stands for the series (nnunet_ssl.corpus.formats.dicom).
    """
    rows, others = [], Counter[str]()
    known = {os.path.abspath(file) for file in files}
    lonely = set(known)
    for folder in sorted({dirname(file) for file in known}):
        for slices in series_in(folder).values():
            chosen = [piece.file for piece in slices if piece.file in known]
            lonely.difference_update(chosen)
            if not chosen:
                continue
            row, reason = _row(chosen[0], len(slices), root)
            if row is None:
                others[reason] += 1
            else:
                rows.append(row)
    notes = [f"{root}: {count} DICOM series left alone: {reason}." for reason, count in sorted(others.items())]
    if lonely:
        notes.append(
            f"{root}: {len(lonely)} DICOM files left alone: they belong to no series of images, e.g. {min(lonely)}. Where "
            "they are images, dcm2niix may know them: dcm2niix -z y -b y -o NIFTI_FOLDER DICOM_FOLDER"
        )
    if rows:
        notes.append(
            f"{root}: {len(rows)} DICOM series are read where they lie; subjects and sessions come from their headers, e.g. "
            f"{rows[0]['subject']}. A patient's number there goes into the table: import pseudonymised files, or say "
            "where the subjects stand in the path with --subject-pattern."
        )
    return rows, notes


def _row(first: str, slices: int, root: str) -> tuple[dict[str, Any] | None, str]:
    """What a series says of itself, or why it is no image."""
    tags = series_tags(first)
    kind = tags.get(MODALITY, "OT")
    if kind not in IMAGES:
        return None, f"no images ({kind})"
    if slices == 1 and tags.get(FRAMES, "1") in ("", "0", "1"):
        return None, "a single slice"
    description = re.sub(r"\W+", "_", tags.get(DESCRIPTION, "")).strip("_")
    number = tags.get(NUMBER, "")
    folder = relpath(dirname(first), root).replace(os.sep, "_").strip("._")
    parts = [folder or basename(root), f"s{int(number):03d}" if number.isdigit() else "", description]
    words = description.split("_") if kind == "MR" else []
    sequence = next((match for word in words if (match := MODALITY_NAME.search(f"_{word}"))), None)
    return {
        "name": "_".join(filter(None, parts)),
        "path": first,
        "dataset": basename(root),
        "subject": tags.get(PATIENT) or folder or basename(root),
        "session": tags.get(STUDY_DATE) or tags.get(STUDY, "")[-SHORT:] or None,
        "modality": sequence.group(0)[1:] if sequence else FIELD_NAMES.get(kind, kind),
    }, ""
