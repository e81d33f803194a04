"""Plans follow dataset.json: names of channels and labels that were corrected after the planning count."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from os.path import isdir, join
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.files.locks import Lock
from nnunet_ssl.files.torn import is_whole
from nnunet_ssl.planners.preprocessing.normalization import are_per_image, distinct_modalities, schemes_for
from nnunet_ssl.planners.sharing.distribution import try_again

# What plans and preprocessed images depend on. Entries of images, counts and descriptions change without consequence.
KEYS = ("channel_names", "labels", "regions_class_order", "file_ending", "overwrite_image_reader_writer")


def planning_lock(name: str) -> Lock:
    """Who holds it may write plans and dataset.json of a data set into nnUNet_preprocessed."""
    # nnU-Net takes every folder that begins with Dataset for a data set, and some locks are folders.
    return Lock(join(nnUNet_preprocessed, f".{name}.planning.lock"), f"planning {name}")


def corrected(dataset_json: Mapping[str, Any], copy: Mapping[str, Any]) -> list[str]:
    """Which keys of a raw dataset.json (completed by `read_dataset_json`) are not those of the copy made at planning."""
    return [key for key in KEYS if dataset_json.get(key) != copy.get(key)]


def follow_dataset_json(name: str, raw: str, dataset_json: Mapping[str, Any]) -> None:
    """Bring the copy of dataset.json in nnUNet_preprocessed up to date, and our plans with it, saying what changed.

    For whoever holds the lock. `dataset_json` is that of the folder `raw`, completed by `read_dataset_json`. The
    normalisation of a channel follows its name; what a user edited for other channels stays. Raises CorpusError where the
    number of channels changed.
    """
    base = join(nnUNet_preprocessed, name)
    path = join(base, "dataset.json")
    if not isdir(base):
        return
    copy = read_json(path) if is_whole(path) else {}
    changed = corrected(dataset_json, copy)
    if not changed:
        return
    before, after = copy.get("channel_names", {}), dataset_json["channel_names"]
    if copy:
        details = f" ({_names(before)} -> {_names(after)})" if "channel_names" in changed else ""
        print(f"{name}: {', '.join(changed)} in dataset.json changed since the planning{details}.", flush=True)
        if "channel_names" in changed:
            for plans in _plans(base):
                _renormalise(name, raw, plans, before, after)
        try_again(base)  # images may have been blamed for what dataset.json said
    write_json(dict(dataset_json), path)


def _renormalise(
    name: str, raw: str, plans: dict[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    plans_name, path = plans["plans_name"], join(nnUNet_preprocessed, name, f"{plans['plans_name']}.json")
    if len(before) != len(after):
        raise CorpusError(
            f"{name} has {len(after)} channels, {plans_name} was made for {len(before)}. Remove {path} and "
            f"{join(nnUNet_preprocessed, name, 'dataset_fingerprint.json')} to plan anew, or correct dataset.json."
        )
    own = str(plans.get("experiment_planner_used", "")).startswith("SSLPlanner")
    if not own:
        print(
            f"WARNING: {path} was made for the channels {_names(before)} and stays as it is; what they are called decides how "
            "they are normalised. Plan anew with the planner that made it."
        )
        return
    renamed = [i for i, pair in enumerate(zip(before.values(), after.values(), strict=True)) if pair[0] != pair[1]]
    channels = [str(channel) for channel in after.values()]
    told = set()
    for configuration in plans["configurations"].values():
        schemes = configuration.get("normalization_schemes")
        if schemes is None:
            continue
        if are_per_image(schemes):
            wanted = schemes_for(channels, distinct_modalities(raw))
            masked = [False] * len(channels)
        else:
            found = [get_normalization_scheme(channel) for channel in channels]
            wanted = [scheme.__name__ for scheme in found]
            crops = any(configuration.get("use_mask_for_norm", []))
            masked = [crops and bool(s.leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true) for s in found]
        for i in renamed:
            if schemes[i] != wanted[i]:
                told.add(f"{channels[i]}: {wanted[i]} instead of {schemes[i]}")
            schemes[i] = wanted[i]
            configuration["use_mask_for_norm"][i] = masked[i]
    if told:
        write_json(plans, path)
        print(f"{name}: {plans_name} normalises accordingly ({'; '.join(sorted(told))}).", flush=True)


def _plans(base: str) -> Iterator[dict[str, Any]]:
    """The plans in a data set's folder of nnUNet_preprocessed."""
    for file in sorted(os.listdir(base)):
        if file.endswith(".json") and is_whole(join(base, file)):
            content = read_json(join(base, file))
            if isinstance(content, dict) and {"configurations", "plans_name"} <= content.keys():
                yield content


def _names(channels: Mapping[str, Any]) -> str:
    return ", ".join(map(str, channels.values()))
