"""Images in a folder, or those a pattern such as /data/**/*T1w.nii.gz matches."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from os.path import abspath, basename, isdir, isfile, join, relpath
from typing import Any

from nnunet_ssl.corpus.formats.dicom import is_dicom
from nnunet_ssl.corpus.reader import ENDINGS, ending_of
from nnunet_ssl.corpus.sources.dicom import find_series
from nnunet_ssl.corpus.sources.folder_names import from_folders
from nnunet_ssl.corpus.sources.found import Found, Mistake, frame
from nnunet_ssl.corpus.sources.layouts import Sorted, sort_files
from nnunet_ssl.corpus.sources.walking import matching_files, walk_files
from nnunet_ssl.corpus.subjects import MODALITY, subject_of
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.entering import why_no_file

ENTITY = {
    "subject": re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)"),
    "session": re.compile(r"(?:^|[/_])(ses-[A-Za-z0-9]+)"),
}
GROUPS = ("subject", "session", "modality", "dataset")


def find_in_folder(source: str, pattern: re.Pattern[str] | None = None) -> Found:
    """The images below a folder, those a glob matches, or a single file; the subjects from their paths.

    `pattern` has named groups among subject, session, modality, dataset and is searched in the path relative to the
    folder (the fixed part of a glob). Raises CorpusError when there is nothing that nnU-Net reads.
    """
    if isdir(source):
        root, files, whole_folder = abspath(source), list(walk_files(source)), True
    elif any(c in source for c in "*?["):
        root = abspath(_fixed_part(source))
        files, whole_folder = matching_files(source), False
    else:
        root, files, whole_folder = abspath(os.path.dirname(source)), [abspath(source)], False
    images = _whole(file for file in files if ending_of(file))
    dicom = [file for file in files if not ending_of(file) and isfile(file) and is_dicom(file)]
    # Whoever means files that are called like segmentations names them with a pattern.
    sorted_files = sort_files(images, root) if whole_folder else Sorted(images, [], {}, {}, None)
    labels, images = sorted_files.labels, sorted(sorted_files.images)
    series, about_series = find_series(dicom, root)
    if not images and not series:
        raise CorpusError(_nothing(source, files, about_series, labels))
    mistakes = [Mistake(file, reason) for file in images if (reason := why_no_file(file))]
    wrong = {mistake.where for mistake in mistakes}
    rows = [
        _row(file, root, pattern)
        | sorted_files.about.get(file, {})
        | ({"label": sorted_files.label_of[file]} if file in sorted_files.label_of else {})
        for file in images
        if file not in wrong
    ]
    rows += [_row(s["path"], root, pattern) | {"name": s["name"]} if pattern else s for s in series]
    notes = [*_notes(source, files, images, dicom, labels), *about_series]
    if sorted_files.layout:
        notes.insert(
            0, f"{source} is laid out as {sorted_files.layout}: {len(images)} images, {len(labels)} label maps."
        )
    if pattern is not None:
        unmatched = [row["path"] for row in rows if row.pop("unmatched")]
        mistakes += [Mistake(path, f"does not match the subject pattern {pattern.pattern}") for path in unmatched]
    elif images and rows:
        subjects = {row["subject"] for row in rows[: len(rows) - len(series)]}
        notes.append(
            f"{source}: subjects come from the paths: {len(subjects)} subjects, {len(rows) - len(series)} images, e.g. "
            f"{rows[0]['subject']}. If that is wrong, say where they are: --subject-pattern '(?P<subject>[^/]+)/'"
        )
    return Found(frame(rows), mistakes, notes)


def _row(file: str, root: str, pattern: re.Pattern[str] | None) -> dict[str, Any]:
    relative = relpath(file, root)
    stem = relative[: -len(ending_of(relative) or "")]
    name = stem.replace(os.sep, "_")
    entities = {key: expression.search(relative) for key, expression in ENTITY.items()}
    modality = MODALITY.search(stem)
    row = {
        "name": name,
        "path": file,
        "dataset": basename(root),
        "subject": entities["subject"][1] if entities["subject"] else subject_of(name),
        "session": entities["session"][1] if entities["session"] else None,
        "modality": modality.group(0)[1:] if modality else None,
    }
    told = from_folders(stem.replace(os.sep, "/"))
    if not entities["subject"]:
        row |= {key: value for key, value in told.items() if key == "subject" or row[key] is None}
    if pattern is not None:
        match = pattern.search(relative)
        row["unmatched"] = match is None
        row |= {key: value for key, value in (match.groupdict() if match else {}).items() if value is not None}
    return row


def _fixed_part(pattern: str) -> str:
    parts = pattern.split(os.sep)
    first = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    return os.sep.join(parts[:first]) or (os.sep if pattern.startswith(os.sep) else ".")


def _whole(files: Iterable[str]) -> list[str]:
    """The files, of a pair of .hdr and .img only the latter."""
    there = dict.fromkeys(files)
    return [f for f in there if not (f.lower().endswith(".hdr") and {f[:-4] + ".img", f[:-4] + ".IMG"} & there.keys())]


def _notes(source: str, files: list[str], images: list[str], dicom: list[str], labels: list[str]) -> list[str]:
    notes = []
    if labels:
        notes.append(
            f"{source}: {len(labels)} files are called like segmentations or masks, or lie in folders of such, and are "
            f"left alone, e.g. {labels[0]}. To import such all the same, name them with a pattern: "
            f"-i {shlex.quote(join(os.path.dirname(labels[0]), '*' + (ending_of(labels[0]) or '')))}"
        )
    others = Counter(os.path.splitext(f)[1] or "without ending" for f in {*files} - {*images} - {*labels} - {*dicom})
    if others:
        kinds = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
        notes.append(f"{source}: {sum(others.values())} files of other kinds are left alone ({kinds}).")
    return notes


def _nothing(source: str, files: list[str], about_series: list[str], labels: list[str]) -> str:
    if about_series:
        return f"There is no image in {source}. " + " ".join(about_series)
    if labels:
        return (
            f"All {len(labels)} images in {source} are called like segmentations or masks, e.g. {basename(labels[0])}. If "
            f"they are images, name them with a pattern: -i '{join(source, '**', '*.*')}'"
        )
    held = f"It holds {len(files)} other files, e.g. {files[0]}." if files else "There are no files."
    return f"{source} holds no image that can be read ({', '.join(ENDINGS)}, DICOM). {held}"
