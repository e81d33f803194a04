"""Look at what was preprocessed of a data set without touching it, or forget it; the user's own images are never touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from contextlib import suppress
from os.path import isdir, isfile, join
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

from nnunet_ssl.corpus.datasets import load_configuration, load_plans, raw_folder
from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.corpus.left_out import read_left_out
from nnunet_ssl.corpus.names import require_case_names
from nnunet_ssl.corpus.splits import FILE as SPLITS
from nnunet_ssl.corpus.splits import drop_from_splits
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.files.participants import CLAIMS, certainly_living
from nnunet_ssl.files.torn import is_torn
from nnunet_ssl.planners.preprocessing.normalization import add_modalities
from nnunet_ssl.planners.sharing.changes import compare
from nnunet_ssl.planners.sharing.distribution import left_out_here, record, step_of
from nnunet_ssl.planners.sharing.finished import SETTINGS, STATE, relevant_settings, stock_cases
from nnunet_ssl.planners.sharing.follow import corrected
from nnunet_ssl.planners.sharing.labels import FOLDER as LABELS
from nnunet_ssl.planners.sharing.made_from import read_origins, write_origins
from nnunet_ssl.planners.sharing.start import differing, folder_lock, remove_folder, stored_settings

ALL = "all"
# Of this package's and of nnU-Net's formats.
ENDINGS = (".pkl", "_seg.b2nd", ".b2nd", ".npz", "_seg.npy", ".npy")


def check(name: str) -> list[str]:
    """What the next start will do with the preprocessed cases of a data set, a line each; changes nothing."""
    base, raw = join(nnUNet_preprocessed, name), raw_folder(name)
    folders = preprocessed_folders(base)
    if not folders:
        return [f"{name}: nothing is preprocessed yet."]
    if raw is None:
        return [f"{name}: {len(stock_cases(f))} cases in {f}; the raw images are not here to compare." for f in folders]
    dataset_json = read_dataset_json(raw)
    cases = list_images(raw, dataset_json)
    add_modalities(cases, raw)
    lines = []
    copy = join(base, "dataset.json")
    if isfile(copy) and not is_torn(copy):
        changed = corrected(dataset_json, read_json(copy))
        lines += (
            [f"{name}: {', '.join(changed)} in dataset.json changed since the planning; plans follow."]
            if changed
            else []
        )
    for folder in folders:
        lines += _check_folder(name, folder, base, cases, dataset_json)
    return lines


def _check_folder(name: str, folder: str, base: str, cases: dict[str, Any], dataset_json: dict[str, Any]) -> list[str]:
    identifier = os.path.basename(folder)
    own = isfile(join(folder, STATE, SETTINGS))
    changed = _settings_changed(name, base, identifier, dataset_json) if own else []
    if changed:
        return [f"{name}, {identifier}: all cases are made anew: {', '.join(changed)} changed."]
    changes = compare(folder, cases)
    lines = changes.lines(name, f", {identifier}")
    left_out = left_out_here(base, cases, step_of(folder)) - changes.finished
    missing = len(cases) - len(changes.finished) - len(left_out) - len(changes.changed)
    by = "" if own else ", by nnU-Net's own preprocessing, which nothing of this changes"
    lines.append(
        f"{name}, {identifier}: {len(changes.finished)} of {len(cases)} cases are as their files are{by}; {missing} are missing, "
        f"{len(left_out)} left out."
    )
    return lines


def _settings_changed(name: str, base: str, identifier: str, dataset_json: dict[str, Any]) -> list[str]:
    stored = stored_settings(join(base, identifier))
    found: list[list[str]] = []
    for file in sorted(f for f in os.listdir(base) if "Plans" in f and f.endswith(".json")):
        with suppress(CorpusError):
            plans = load_plans(name, file.removesuffix(".json"))
            for configuration in plans["configurations"]:
                settings = load_configuration(plans, configuration)
                if settings.get("data_identifier") == identifier:
                    found.append(differing(relevant_settings(plans, settings, dataset_json), stored))
    return min(found, key=len, default=[])


def forget(name: str, cases: Collection[str] | None) -> list[str]:
    """Remove what was made of `cases`, None for all: preprocessed files, claims, rows of tables, copies of labels.

    Returns a line for each thing done. Raises CorpusError for cases nobody knows, and where a process is at work.
    """
    base, raw = join(nnUNet_preprocessed, name), raw_folder(name)
    folders = preprocessed_folders(base)
    there = set(list_images(raw, read_dataset_json(raw), any_names=True)) if raw is not None else set()
    left_out = read_left_out(base) if isdir(base) else {}
    if cases is not None:
        require_case_names(cases, "--forget", "Name cases as in dataset.json, or all of them: --forget all")
        known = there.union(left_out, *(_cases_in(folder) for folder in folders))
        unknown = sorted(set(cases) - known)
        if unknown:
            raise CorpusError(
                f"{name} knows no {', '.join(unknown)}; nothing was removed. It has {len(known)} cases, e.g. "
                f"{', '.join(sorted(known)[:3]) or 'none'}."
            )
    lines = []
    for folder in folders:
        number = _forget_in(folder, cases)
        lines.append(f"{name}: what was made of {number} cases is removed from {folder}.")
    chosen = set(left_out) if cases is None else set(cases)
    if chosen & left_out.keys():
        record(base, chosen & left_out.keys(), {})
        lines.append(f"{name}: {len(chosen & left_out.keys())} cases are no longer left out.")
    _forget_labels(base, raw, there if cases is None else chosen)
    if raw is not None and isdir(base):
        drop_from_splits(join(base, SPLITS), keep=there)
    again = len(there if cases is None else there & chosen)
    if again:
        lines.append(
            f"{name}: {again} of them are still in {raw}, which stays as it is; the next start makes them anew."
        )
    return lines or [f"{name}: nothing was preprocessed; nothing is removed."]


def forget_gone(name: str, cases: Collection[str]) -> list[str]:
    """Forget cases that were taken out of a data set, as far as anything was made of them."""
    base = join(nnUNet_preprocessed, name)
    known = set(read_left_out(base)).union(*(_cases_in(folder) for folder in preprocessed_folders(base)))
    return forget(name, known.intersection(cases)) if known.intersection(cases) else []


def preprocessed_folders(base: str) -> list[str]:
    """The folders of preprocessed cases in a data set's folder of nnUNet_preprocessed."""
    names = sorted(os.listdir(base)) if isdir(base) else []
    folders = [join(base, n) for n in names if isdir(join(base, n)) and n != LABELS and ".removed-" not in n]
    return [f for f in folders if isdir(join(f, STATE)) or any(n.endswith(".pkl") for n in os.listdir(f))]


def _cases_in(folder: str) -> set[str]:
    return {name[: -len(".pkl")] for name in os.listdir(folder) if name.endswith(".pkl")}


def _forget_in(folder: str, cases: Collection[str] | None) -> int:
    state = join(folder, STATE)
    with folder_lock(folder).waiting():
        others = certainly_living(state)
        if others:
            raise CorpusError(
                f"Another process ({others[0]}) is preprocessing into {folder}. Let it finish or stop it."
            )
        present = _cases_in(folder)
        if cases is None:
            remove_folder(folder)
            return len(present)
        for case in cases:
            _remove(join(folder, f"{case}{ending}") for ending in ENDINGS)
            claim = join(state, CLAIMS, case)
            shutil.rmtree(claim, ignore_errors=True) if isdir(claim) else _remove([claim])
        if isdir(state):
            write_origins(state, {case: o for case, o in read_origins(state).items() if case not in cases})
        return len(present.intersection(cases))


def _forget_labels(base: str, raw: str | None, cases: Collection[str]) -> None:
    """Copies of labels, where the originals are, or were, in nnUNet_raw: elsewhere they are somebody's only ones."""
    folder = join(base, LABELS)
    if raw is None or not isdir(folder):
        return
    ending = str(read_dataset_json(raw)["file_ending"])
    _remove(join(folder, f"{case}{ending}") for case in cases)


def _remove(files: Iterable[str]) -> None:
    for file in files:
        with suppress(FileNotFoundError):
            os.remove(file)
