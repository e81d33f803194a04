"""Which cases of a preprocessed folder are finished, and with what settings they were made."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from glob import escape, glob
from os.path import isdir, isfile, join
from typing import Any

from nnunet_ssl.corpus.errors import CorpusError
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.locks import Lock
from nnunet_ssl.planners.shards import certainly_living, living

# A folder, because nnU-Net tells its data formats apart by the endings of the files beside the cases.
STATE = "preprocessing"
SETTINGS = "settings.json"
SUFFIXES = (
    ".b2nd",
    "_seg.b2nd",
    ".pkl",
)  # in the order they are put in place: a case is finished when its .pkl is there


def finished_cases(folder: str) -> set[str]:
    """The cases in `folder` whose files are all there."""
    names = set(os.listdir(folder)) if isdir(folder) else set()
    candidates = (name[: -len(".pkl")] for name in names if name.endswith(".pkl"))
    return {case for case in candidates if all(case + suffix in names for suffix in SUFFIXES)}


def is_finished(folder: str, case: str) -> bool:
    """Whether the files of a case are all there."""
    return all(isfile(join(folder, case + suffix)) for suffix in SUFFIXES)


def put_in_place(folder: str, case: str, work: str) -> None:
    """Move the files of a case from the folder `work` to `folder`, the .pkl last."""
    for suffix in SUFFIXES:
        os.replace(join(work, case + suffix), join(folder, case + suffix))


def discard(folder: str, cases: Iterable[str]) -> None:
    """Remove the files of `cases`, the .pkl first."""
    for case in cases:
        for suffix in reversed(SUFFIXES):
            if isfile(join(folder, case + suffix)):
                os.remove(join(folder, case + suffix))


def unfinished_cases(folder: str) -> set[str]:
    """Cases in `folder` of which some but not all files are there: the process was killed while moving them."""
    names = os.listdir(folder) if isdir(folder) else []
    endings = ("_seg.b2nd", ".b2nd", ".pkl")
    found = {name[: -len(next(e for e in endings if name.endswith(e)))] for name in names if name.endswith(endings)}
    return found - finished_cases(folder)


def relevant_settings(
    plans: Mapping[str, Any], configuration: Mapping[str, Any], dataset_json: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything the preprocessed images depend on besides the images."""
    schemes = configuration["normalization_schemes"]
    intensities = plans["foreground_intensity_properties_per_channel"]
    settings = {
        "image_reader_writer": plans["image_reader_writer"],
        "transpose_forward": plans["transpose_forward"],
        "preprocessor_name": configuration["preprocessor_name"],
        "spacing": configuration["spacing"],
        "normalization_schemes": schemes,
        "use_mask_for_norm": configuration["use_mask_for_norm"],
        "resampling": {
            k: v for k, v in configuration.items() if k.startswith(("resampling_fn_data", "resampling_fn_seg"))
        },
        "channel_names": dataset_json.get("channel_names", dataset_json.get("modality")),
        "labels": dataset_json["labels"],
        # Only CT normalisation looks at the whole dataset; elsewhere a new fingerprint changes nothing.
        "intensities": {str(i): intensities[str(i)] for i, s in enumerate(schemes) if s == "CTNormalization"},
    }
    if configuration.get("storage_dtype", "float32") != "float32":
        settings["storage_dtype"] = configuration["storage_dtype"]
    return json.loads(json.dumps(settings))


def start_or_continue(folder: str, settings: Mapping[str, Any]) -> None:
    """Prepare `folder` for cases made with `settings`; cases made with others are removed, saying so.

    Raises CorpusError when another process is making cases with other settings there.
    """
    with Lock(f"{folder}.lock", "preparing the folder of preprocessed images").waiting():
        for remains in glob(f"{escape(folder)}.removed-*"):  # of a process that was killed while it removed them
            shutil.rmtree(remains)
        stored = join(folder, STATE, SETTINGS)
        others = living(join(folder, STATE))
        if isdir(folder):
            previous: Mapping[str, Any] = {}
            if isfile(stored):
                with open(stored, encoding="utf-8") as file:
                    previous = json.load(file)
            changed = [k for k in dict.fromkeys([*settings, *previous]) if settings.get(k) != previous.get(k)]
            if changed and others and certainly_living(join(folder, STATE)):
                raise CorpusError(
                    f"Another process ({others[0]}) is preprocessing into {folder} with other settings "
                    f"({', '.join(changed)}). Let it finish or stop it, or give these plans another name."
                )
            if changed and finished_cases(folder):
                why = f"{', '.join(changed)} changed" if previous else "nothing says which settings they were made with"
                print(f"The cases in {folder} are made anew: {why}.")
            if changed:
                # Renamed first: a process killed while removing leaves no half of a folder behind under its name.
                old = f"{folder}.removed-{secrets.token_hex(4)}"
                os.rename(folder, old)
                shutil.rmtree(old)
            elif not others:
                discard(folder, unfinished_cases(folder))
        os.makedirs(join(folder, STATE), exist_ok=True)
        write_json(dict(settings), stored)
