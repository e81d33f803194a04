"""Which cases of a preprocessed folder are finished, and the settings that decide what they look like."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from os.path import isdir, isfile, join
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

# A folder, because nnU-Net tells its data formats apart by the endings of the files beside the cases.
STATE = "preprocessing"
SETTINGS = "settings.json"
SAMPLING = "fg_sampling"  # nnU-Net's development branch keeps the places of all labels of all cases there
VERSION = 1  # of the preprocessing: another one makes everything anew
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


def stock_cases(folder: str) -> set[str]:
    """The cases nnU-Net finds in a preprocessed folder, of whichever of its formats."""
    if not isdir(folder):
        return set()
    try:
        return set(infer_dataset_class(folder).get_identifiers(folder))
    except (AssertionError, KeyError):
        return set()


def is_finished(folder: str, case: str) -> bool:
    """Whether the files of a case are all there."""
    return all(isfile(join(folder, case + suffix)) for suffix in SUFFIXES)


def put_in_place(folder: str, case: str, work: str) -> None:
    """Move the files of a case from the folder `work` to `folder`, the .pkl last."""
    _forget_sampling(folder)
    for suffix in SUFFIXES:
        os.replace(join(work, case + suffix), join(folder, case + suffix))


def discard(folder: str, cases: Iterable[str]) -> None:
    """Remove the files of `cases`, the .pkl first."""
    for case in cases:
        _forget_sampling(folder)
        for suffix in reversed(SUFFIXES):
            if isfile(join(folder, case + suffix)):
                os.remove(join(folder, case + suffix))


def _forget_sampling(folder: str) -> None:
    """Make nnU-Net look into the .pkl again: its store would name places in images that are no more."""
    with suppress(FileNotFoundError):
        os.remove(join(folder, SAMPLING, "meta.json"))  # without it there is no store


def unfinished_cases(folder: str) -> set[str]:
    """Cases in `folder` of which some but not all files are there: the process was killed while moving them."""
    names = os.listdir(folder) if isdir(folder) else []
    endings = ("_seg.b2nd", ".b2nd", ".pkl")
    found = {name[: -len(next(e for e in endings if name.endswith(e)))] for name in names if name.endswith(endings)}
    return found - finished_cases(folder)


def plan_settings(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What plans say about the values of preprocessed images; a network trained on others must not go on with these."""
    schemes = configuration["normalization_schemes"]
    intensities = plans["foreground_intensity_properties_per_channel"]
    settings = {
        "transpose_forward": plans["transpose_forward"],
        "spacing": configuration["spacing"],
        "normalization_schemes": schemes,
        "use_mask_for_norm": configuration["use_mask_for_norm"],
        "resampling": {
            k: v for k, v in configuration.items() if k.startswith(("resampling_fn_data", "resampling_fn_seg"))
        },
        # Only CT normalisation looks at the whole dataset; elsewhere a new fingerprint changes nothing.
        "intensities": {str(i): intensities[str(i)] for i, s in enumerate(schemes) if s == "CTNormalization"},
    }
    return json.loads(json.dumps(settings))


def relevant_settings(
    plans: Mapping[str, Any], configuration: Mapping[str, Any], dataset_json: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything the preprocessed images depend on besides the images."""
    settings = {
        **plan_settings(plans, configuration),
        "image_reader_writer": plans["image_reader_writer"],
        "preprocessor_name": configuration["preprocessor_name"],
        "channel_names": dataset_json.get("channel_names", dataset_json.get("modality")),
        "labels": dataset_json["labels"],
    }
    if configuration.get("storage_dtype", "float32") != "float32":
        settings["storage_dtype"] = configuration["storage_dtype"]
    if VERSION > 1:
        settings["version"] = VERSION
    return json.loads(json.dumps(settings))
