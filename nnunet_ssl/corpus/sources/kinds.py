"""What kind of source the user named, and the images in it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import expanduser, expandvars, isdir, isfile, join

from nnunet_ssl.corpus.reader import ending_of
from nnunet_ssl.corpus.sources.bids import find_in_bids
from nnunet_ssl.corpus.sources.csv_table import find_in_table
from nnunet_ssl.corpus.sources.dataset import channel_names, dataset_folder, find_in_dataset, is_decathlon
from nnunet_ssl.corpus.sources.folder import find_in_folder
from nnunet_ssl.corpus.sources.found import Found, combine
from nnunet_ssl.corpus.sources.openmind import METADATA, find_in_openmind
from nnunet_ssl.corpus.sources.pretrain_data import find_in_pretrain_data
from nnunet_ssl.errors import BadFile, CorpusError
from nnunet_ssl.files.entering import read_json

TABLES = (".csv", ".tsv", ".parquet", ".pq")


@dataclass(frozen=True)
class SourceOptions:
    """How to read the sources: the name of the new data set, and what the flags say."""

    dataset: str
    kind: str = "auto"
    subject_pattern: re.Pattern[str] | None = None
    test_images: bool = True
    split_channels: bool = False


KINDS: dict[str, Callable[[str, SourceOptions], Found]] = {
    "folder": lambda source, options: find_in_folder(source, options.subject_pattern),
    "table": lambda source, options: find_in_table(source, options.dataset),
    "bids": lambda source, options: find_in_bids(source),
    "openmind": lambda source, options: find_in_openmind(source),
    "pretrain_data": lambda source, options: find_in_pretrain_data(source),
    "dataset": lambda source, options: find_in_dataset(
        source, test_images=options.test_images, split_channels=options.split_channels
    ),
}


def collect(sources: Sequence[str], options: SourceOptions) -> Found:
    """The images of all sources; raises CorpusError for a source that cannot be one."""
    expanded = [expanduser(expandvars(source)) for source in sources]
    kinds = [kind_of(source) if options.kind == "auto" else options.kind for source in expanded]
    datasets = [source for source, kind in zip(expanded, kinds, strict=True) if kind == "dataset"]
    different = {tuple(channel_names(source)) for source in datasets}
    several = any(len(names) > 1 for names in different)
    if several and not options.split_channels and (len(different) > 1 or len(datasets) < len(expanded)):
        described = "; ".join(f"{source}: {', '.join(channel_names(source))}" for source in datasets)
        raise CorpusError(
            f"The sources differ in their channels ({described}). Make every channel an image of its own with "
            "--split-channels, or import them as several data sets: nnUNetv2_pretrain ID ID trains on all of them."
        )
    return combine(KINDS[kind](source, options) for source, kind in zip(expanded, kinds, strict=True))


def kind_of(source: str) -> str:
    """Which of KINDS a source is; raises CorpusError when it is nothing or names no file."""
    lower = source.lower()
    if isfile(source):
        if os.path.basename(source) == METADATA:
            return "openmind"
        if lower.endswith(TABLES):
            return "table"
        if lower.endswith(".json"):
            return "pretrain_data"
        if ending_of(source):
            return "folder"
        raise CorpusError(
            f"{source} is no image and no list of images. Expected a folder, a pattern, {', '.join(TABLES)}, "
            "pretrain_data.json or an nnU-Net data set."
        )
    if isdir(source):
        if isfile(join(source, METADATA)):
            return "openmind"
        if isfile(join(source, "dataset.json")):
            return "folder" if is_decathlon(source) else "dataset"
        if isfile(join(source, "pretrain_data.json")):
            raise CorpusError(
                f"{source} holds a pretrain_data.json. Name the file: -i {join(source, 'pretrain_data.json')}"
            )
        return "bids" if _looks_like_bids(source) else "folder"
    if any(c in source for c in "*?["):
        return "folder"
    if dataset_folder(source):
        return "dataset"
    raise CorpusError(f"{source} is no file, no folder and no data set in nnUNet_raw.")


def _looks_like_bids(folder: str) -> bool:
    description = join(folder, "dataset_description.json")
    if isfile(description):
        try:
            content = read_json(description)
        except BadFile:
            return True
        return isinstance(content, dict) and "BIDSVersion" in content
    subjects = [entry.path for entry in os.scandir(folder) if entry.name.startswith("sub-") and entry.is_dir()]
    # BIDS has folders of data types in the subject's or the session's folder; images directly in sub-01/ are just files.
    return isfile(join(folder, "participants.tsv")) or any(_has_data_type(subject) for subject in subjects[:20])


def _has_data_type(subject: str) -> bool:
    folders = [entry for entry in os.scandir(subject) if entry.is_dir()]
    inner = [e for f in folders if f.name.startswith("ses-") for e in os.scandir(f.path) if e.is_dir()]
    return any(entry.name in ("anat", "dwi", "perf", "func", "fmap", "pet", "ct") for entry in [*folders, *inner])
