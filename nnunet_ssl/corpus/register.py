"""Turn what was found into an nnU-Net data set that points at the files, or add it to one that is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from os.path import isfile, join
from typing import Any

import numpy as np
import pandas as pd

from nnunet_ssl.corpus.address import mask_address, volume_address
from nnunet_ssl.corpus.images import load_dataset_json
from nnunet_ssl.corpus.names import assign_names, require_case_names
from nnunet_ssl.corpus.reader import LABELS, ending_of
from nnunet_ssl.corpus.table import COLUMNS, FILE, HEADER_COLUMNS, has_table, read_table, typed, write_table
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.atomic import write_json

KEY = ["path", "volume"]
WORKING_COLUMNS = ("name", "images", "where")
OF_THE_FILE = (*HEADER_COLUMNS, "bytes", "modified", "problem")


@dataclass
class Registered:
    """What an import did, as names of cases; `problems` are {file: reason}."""

    folder: str
    total: int = 0
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    masks_changed: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    renamed: str = ""  # channel names before and after, where they were asked to change


def known_images(folder: str) -> pd.DataFrame:
    """The table of a data set made by an import, empty when there is none yet.

    Raises CorpusError when `folder` holds a data set that was made otherwise.
    """
    if has_table(folder):
        table = read_table(folder, with_problems=True)
        require_case_names(
            table["case"], join(folder, FILE), f"Remove {join(folder, FILE)} and dataset.json, and import again."
        )
        return table
    if isfile(join(folder, "dataset.json")):
        raise CorpusError(
            f"{folder} holds a data set that nnUNetv2_pretrain_import did not make; it stays as it is. Choose another "
            f"number with -d, or pre-train on it directly. To import its images: -i {folder}"
        )
    return typed(pd.DataFrame(columns=list(COLUMNS)))


def unchanged(found: pd.DataFrame, known: pd.DataFrame) -> pd.Series:
    """Which rows of `found` (with `bytes` and `modified`) are files that the table knows as they are."""
    stored = known.drop_duplicates("path").set_index("path")[["bytes", "modified"]].astype(float)
    stored = stored.reindex(found["path"])
    same = (stored["bytes"].to_numpy() == found["bytes"].to_numpy(dtype=float)) & (
        stored["modified"].to_numpy() == found["modified"].to_numpy(dtype=float)
    )
    return pd.Series(same, index=found.index)


def register(
    found: pd.DataFrame,
    known: pd.DataFrame,
    folder: str,
    channels: list[str] | None,
    *,
    prune: bool = False,
    labels: Mapping[str, int] | None = None,
) -> Registered:
    """Write corpus.parquet and dataset.json; cases that are known keep their names.

    `found` has the columns of COLUMNS, `name` and `images`. What a source says anew about a known image replaces what was
    known. With `prune`, images whose files are gone are taken out; otherwise they stop the import.
    `labels`, {name: value}, puts the label maps of the column `label` into nnU-Net's place; a data set that has them keeps
    them. Raises CorpusError.
    """
    result = Registered(folder)
    previous = load_dataset_json(folder) if isfile(join(folder, "dataset.json")) else {}
    entries: dict[str, Any] = dict(previous.get("dataset", {}))
    gone = [not isfile(path) for path in known["path"]] if len(known) else []
    result.vanished = known.loc[gone, "case"].tolist() if any(gone) else []
    if result.vanished and not prune:
        raise CorpusError(
            f"{len(result.vanished)} images of {folder} are no longer there, e.g. {known.loc[gone, 'path'].iloc[0]}. If they "
            "moved, move them back; to take them out of the data set, add --prune."
        )
    if prune and result.vanished:
        known = known[~np.array(gone)].reset_index(drop=True)
        for case in result.vanished:
            entries.pop(case, None)
        result.removed = result.vanished

    found = found.reset_index(drop=True)
    position = _positions(known, found)
    is_new = position < 0
    names = found["name"].astype(object).to_numpy(copy=True)
    names[~is_new] = known["case"].to_numpy(dtype=object)[position[~is_new]]
    keys = _keys(found)
    names[is_new] = assign_names([str(n) for n in names[is_new]], keys[is_new].tolist(), known["case"])
    found = found.assign(case=names)
    result.new = found.loc[is_new & found["problem"].isna(), "case"].tolist()
    _note_changes(found[~is_new], known, position[~is_new], result)

    table = typed(_merged(known, found, position))
    problems = table[table["problem"].notna()]
    result.problems = dict(zip(problems["path"], problems["problem"], strict=True))
    images = dict(zip(found["case"], found["images"], strict=True)) if "images" in found else {}
    if labels is None and previous.get("labels", LABELS) != LABELS:
        labels = previous["labels"]
    entries = _entries(table, entries, images, with_labels=labels is not None)
    result.total = len(entries)
    if channels is not None and entries:
        number = len(next(iter(entries.values()))["images"])
        if len(channels) != number:
            raise CorpusError(
                f"--channel-name names {len(channels)} channels ({', '.join(channels)}), the images have {number}."
            )
    if not entries:
        reasons = "\n".join(f"  {path}: {reason}" for path, reason in list(result.problems.items())[:10])
        raise CorpusError(f"None of the {len(table)} images can be used; nothing is registered.\n{reasons}")
    os.makedirs(folder, exist_ok=True)
    write_table(table, folder)
    written = _dataset_json(previous, entries, table, channels, labels or LABELS)
    before = previous.get("channel_names") or written["channel_names"]
    if before != written["channel_names"]:
        result.renamed = " -> ".join(", ".join(map(str, n.values())) for n in (before, written["channel_names"]))
    write_json(written, join(folder, "dataset.json"))
    return result


def _keys(table: pd.DataFrame) -> np.ndarray:
    # A path cannot contain the character 0, so that no two pairs give the same key.
    return (table["path"].astype(str) + "\0" + table["volume"].fillna("").astype(str)).to_numpy(dtype=object)


def _positions(known: pd.DataFrame, found: pd.DataFrame) -> np.ndarray:
    """Where in `known` each row of `found` is, -1 for new ones."""
    return pd.Index(_keys(known)).get_indexer(pd.Index(_keys(found)))


def _note_changes(found: pd.DataFrame, known: pd.DataFrame, position: np.ndarray, result: Registered) -> None:
    """Enter the known images whose file has changed, or to which the source gives another mask than before."""
    before = known.iloc[position]
    cases = found["case"].tolist()

    def differing(column: str) -> set[str]:
        pairs = zip(cases, _none(before[column]), _none(found[column]), strict=True)
        return {case for case, old, new in pairs if new is not None and new != old}

    changed, masks = differing("modified"), differing("anatomy_mask") | differing("anonymisation_mask")
    result.changed = [case for case in cases if case in changed]
    result.masks_changed = [case for case in cases if case in masks]


def _none(values: Any) -> list[Any]:
    return [None if pd.isna(value) else value for value in values]


def _merged(known: pd.DataFrame, found: pd.DataFrame, position: np.ndarray) -> pd.DataFrame:
    """Known rows in their order, with what was found out about them anew, then the new ones."""
    found = found.drop(columns=[c for c in WORKING_COLUMNS if c in found])
    if not len(known):
        return found
    again = found[position >= 0].set_index("case")
    table = known.astype(object).set_index("case")
    for column in found.columns.drop("case"):
        values = again[column]
        if column not in OF_THE_FILE:
            values = values[values.notna()]
        if column not in table:
            table[column] = None
        table.loc[values.index, column] = values.astype(object).where(values.notna(), None)
    return pd.concat([table.reset_index(), found[position < 0].astype(object)], ignore_index=True)


def _entries(
    table: pd.DataFrame, previous: Mapping[str, Any], images: Mapping[str, Any], *, with_labels: bool
) -> dict[str, Any]:
    """The "dataset" block of dataset.json: files and masks, or label maps, of every case without a problem."""
    entries = {}
    columns = ("case", "path", "volume", "anatomy_mask", "anonymisation_mask", "label", "channels", "problem")
    for case, path, volume, anatomy, anonymised, label_map, channels, problem in zip(
        *(_none(table[c]) for c in columns), strict=True
    ):
        if problem is not None:
            continue
        files = images.get(case)
        if not isinstance(files, list):
            several = channels is not None and channels > 1
            files = previous[case]["images"] if several else [volume_address(path, volume)]
        entry: dict[str, Any] = {"images": files}
        label = label_map if with_labels else mask_address(anatomy, anonymised)
        entries[case] = entry | ({"label": label} if label else {})
    return entries


def _dataset_json(
    previous: Mapping[str, Any],
    entries: dict[str, Any],
    table: pd.DataFrame,
    channels: list[str] | None,
    labels: Mapping[str, int],
) -> dict[str, Any]:
    # Names of channels are settings of the preprocessing: another one makes all images anew, so it must be asked for.
    names = previous.get("channel_names")
    if not names or channels is not None:
        names = {str(i): name for i, name in enumerate(channels or default_channels(table))}
    return {
        "channel_names": names,
        "labels": dict(labels),
        "numTraining": len(entries),
        "file_ending": previous.get("file_ending") or ending_of(table["path"].iloc[0]) or ".nii.gz",
        "overwrite_image_reader_writer": "CorpusReader",
        "description": "Written by nnUNetv2_pretrain_import; what the images are is in corpus.parquet.",
        "dataset": entries,
    }


def default_channels(table: pd.DataFrame) -> list[str]:
    """The names of the channels: the modality where all images have the same, otherwise "image"."""
    modalities = table["modality"].dropna().unique()
    if len(modalities) != 1 or table["modality"].isna().any():
        count = int(pd.to_numeric(table["channels"]).fillna(1).max())
        return ["image"] if count == 1 else [f"image {i}" for i in range(count)]
    return str(modalities[0]).split("+")
