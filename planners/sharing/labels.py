"""gt_segmentations: the labels that nnU-Net validates against, copied so that each is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from os.path import isdir, join
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

from nnunet_ssl.corpus.splits import FILE as SPLITS
from nnunet_ssl.corpus.splits import drop_from_splits
from nnunet_ssl.corpus.stamps import MISSING, Stamp, stamp
from nnunet_ssl.corpus.unusable_labels import usable_labels
from nnunet_ssl.files.atomic import atomic_path
from nnunet_ssl.planners.folds import write_folds

FOLDER = "gt_segmentations"


def copy_labels(name: str, cases: Mapping[str, Mapping[str, Any]], ending: str) -> None:
    """Copy labels that are not there, or are other ones now; what is left of cases that are gone is dropped, splits too.

    `cases` are those of the raw data set. Masks of an imported corpus are no ground truth and are not copied.
    """
    base = join(nnUNet_preprocessed, name)
    folder = join(base, FOLDER)
    labels = usable_labels(base, cases)
    if labels:
        os.makedirs(folder, exist_ok=True)
    there = {file for file in os.listdir(folder) if not file.startswith(".")} if isdir(folder) else set()
    renewed = []
    for case, label in labels.items():
        copy = join(folder, case + ending)
        wanted = stamp(label)
        if wanted == MISSING or (case + ending in there and _same(stamp(copy), wanted)):
            continue
        renewed += [case] if case + ending in there else []
        with atomic_path(copy, ending) as temporary:  # a link would be another file's tomorrow
            shutil.copyfile(label, temporary)
            os.utime(temporary, ns=(os.stat(label).st_atime_ns, wanted[1]))
    gone = sorted(file for file in there if file.endswith(ending) and file[: -len(ending)] not in labels)
    for file in gone:
        with suppress(FileNotFoundError):  # another process does the same
            os.remove(join(folder, file))
    if renewed:
        print(f"{name}: {len(renewed)} labels in {folder} were other ones and are copied again.")
    if gone:
        print(f"{name}: {len(gone)} labels in {folder} are no longer in {name} and are dropped.")
    if isdir(base):
        drop_from_splits(join(base, SPLITS), keep=cases.keys())
        write_folds(name, labels.keys(), cases.keys())


def _same(copy: Stamp, original: Stamp) -> bool:
    whole_seconds = copy[1] % 10**9 == 0  # as nnU-Net's own command leaves its copies
    return copy[0] == original[0] and (
        copy[1] == original[1] or (whole_seconds and copy[1] == original[1] // 10**9 * 10**9)
    )
