"""Which images features are wanted of: an nnU-Net data set, its folder of images, or whatever can be imported."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import basename, isdir, isfile, join, normpath
from typing import Any

from nnunet_ssl.corpus.address import volume_address
from nnunet_ssl.corpus.folders import find_raw_dataset, raw_datasets
from nnunet_ssl.corpus.images import files_of_cases, list_images, read_dataset_json, shortened
from nnunet_ssl.corpus.names import assign_names
from nnunet_ssl.corpus.reader import ENDINGS, ending_of
from nnunet_ssl.corpus.sources.kinds import SourceOptions, collect
from nnunet_ssl.corpus.subjects import subjects_of
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.planners.preprocessing.normalization import MODALITY, add_modalities


@dataclass(frozen=True)
class Scan:
    """An image: its name, a file per channel, its label file, its modality where it is known, its subject."""

    case: str
    files: tuple[str, ...]
    label: str | None = None
    modality: str | None = None
    subject: str | None = None


def scans_of_dataset(dataset: str | int) -> list[Scan]:
    """The training images of a raw nnU-Net data set, with their labels; raises CorpusError."""
    folder = find_raw_dataset(dataset)
    if folder is None:
        raise CorpusError(
            f"There is no data set {dataset} in nnUNet_raw. There are: {', '.join(raw_datasets()) or 'none'}."
        )
    dataset_json = read_dataset_json(folder, labels=False)
    cases = list_images(folder, dataset_json)
    add_modalities(cases, folder)
    channels = "+".join(str(name) for name in dataset_json["channel_names"].values())
    subjects = subjects_of(folder, cases, basename(normpath(folder)))
    return [
        Scan(name, tuple(case["images"]), case["label"], case.get(MODALITY) or channels, subjects[name])
        for name, case in cases.items()
    ]


def scans_in(
    sources: Sequence[str], labels: str | None = None, subject_pattern: re.Pattern[str] | None = None
) -> tuple[list[Scan], list[str]]:
    """(images, sentences on what was noticed) of files, folders, patterns, tables, BIDS trees.

    A folder of files called CASE_0000, CASE_0001 is one of nnU-Net: a case has a file per channel. labels: a folder of files
    that are called as the cases are. subject_pattern: where in a path the subject stands. Raises CorpusError where nothing is
    found, and for labels without a file.
    """
    scans: list[Scan] = []
    others, notes = [], []
    for source in sources:
        ending = nnunet_ending(source)
        if ending is None:
            others.append(source)
            continue
        scans += [Scan(case, tuple(files)) for case, files in files_of_cases(source, ending).items()]
    if others:
        found = collect(others, SourceOptions(dataset="features", subject_pattern=subject_pattern, test_images=False))
        notes += [*found.notes, *(f"Left out: {mistake}" for mistake in found.mistakes)]
        scans += _from_table(found.table.to_dict("records"))
    if not scans:
        raise CorpusError(f"No image was found in {', '.join(sources)}. Read are {', '.join(ENDINGS)} and DICOM.")
    if labels is not None:
        scans = _with_labels(scans, labels)
    repeated = [name for name, number in Counter(scan.case for scan in scans).items() if number > 1]
    if repeated:
        raise CorpusError(
            f"{len(repeated)} names stand for several images, e.g. {repeated[0]}. Take one source at a time."
        )
    return scans, notes


def nnunet_ending(folder: str) -> str | None:
    """The ending of the images of a folder that is laid out as nnU-Net's imagesTs is; None for others."""
    if not isdir(folder) or isfile(join(folder, "dataset.json")):
        return None
    names = os.listdir(folder)
    return next((ending for ending in ENDINGS if any(name.endswith(f"_0000{ending}") for name in names)), None)


def _from_table(rows: Sequence[Mapping[str, Any]]) -> Iterable[Scan]:
    """Rows of a source as scans, named as an import would name them."""
    paths = [_address(row) for row in rows]
    stems = [str(row.get("name") or "") or _stem(str(row["path"])) for row in rows]
    for name, row in zip(assign_names(stems, paths, ()), rows, strict=True):
        files = row.get("images")
        several = tuple(map(str, files)) if isinstance(files, (list, tuple)) and files else (_address(row),)
        known = {
            key: row.get(key) if isinstance(row.get(key), str) else None for key in ("label", "modality", "subject")
        }
        yield Scan(name, several, **known)


def _address(row: Mapping[str, Any]) -> str:
    volume = row.get("volume")
    return volume_address(str(row["path"]), volume if isinstance(volume, str) else None)


def _stem(path: str) -> str:
    name = basename(path)
    return name[: len(name) - len(ending_of(name) or "")]


def _with_labels(scans: Sequence[Scan], folder: str) -> list[Scan]:
    known = {_stem(name): join(folder, name) for name in os.listdir(folder)} if isdir(folder) else {}
    missing = [scan.case for scan in scans if scan.case not in known]
    if missing:
        raise CorpusError(
            f"{len(missing)} of {len(scans)} images have no file of their name in --labels {folder}:\n{shortened(missing)}"
        )
    return [Scan(s.case, s.files, known[s.case], s.modality, s.subject) for s in scans]
