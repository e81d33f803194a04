"""Find the images of an nnU-Net dataset, with or without labels, by nnU-Net's own rules."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from os.path import isdir, isfile, join, lexists
from typing import Any

from nnunet_ssl.corpus.address import files_of, split_volume
from nnunet_ssl.corpus.dataset_check import mistakes_in
from nnunet_ssl.corpus.names import require_case_names
from nnunet_ssl.errors import BadFile, CorpusError
from nnunet_ssl.files.entering import read_json

# Set for a run of nnUNetv2_pretrain --with-test-images and the processes it starts.
TEST_IMAGES = "NNUNET_SSL_WITH_TEST_IMAGES"
NUM_SHOWN = 10  # files named in an error message
EXAMPLE = '{"channel_names": {"0": "T1w"}, "labels": {"background": 0}, "numTraining": 12, "file_ending": ".nii.gz"}'


def load_dataset_json(folder: str) -> dict[str, Any]:
    """The dataset.json in `folder` as it is; raises CorpusError when it is missing or not JSON."""
    path = join(folder, "dataset.json")
    if not lexists(path):
        raise CorpusError(
            f"There is no {path}. Every nnU-Net dataset has one, for images without labels e.g.\n{EXAMPLE}"
        )
    try:
        content = read_json(path)
    except BadFile as error:
        raise CorpusError(f"{error}. A minimal one:\n{EXAMPLE}") from error
    if not isinstance(content, dict):
        raise CorpusError(f"{path} holds a {type(content).__name__}, expected an object such as\n{EXAMPLE}")
    return content


def read_dataset_json(folder: str, *, labels: bool = True) -> dict[str, Any]:
    """The dataset.json of a raw dataset folder, completed so that nnU-Net's classes can work with image-only datasets.

    Filled in where missing: file_ending (from the files), numTraining (counted), channel_names (from the old name
    "modality") and labels. Labels become {"background": 0}, the least that nnU-Net's LabelManager accepts: it gives one
    segmentation head, no foreground class and hence no foreground oversampling. Without `labels`, for whom the images alone
    matter, what the file says of labels may be of nnU-Net 1, or wrong. Raises CorpusError.
    """
    content = load_dataset_json(folder)
    if not labels:
        content.pop("labels", None)
    mistakes = mistakes_in(content)
    if mistakes:
        raise CorpusError(
            f"{join(folder, 'dataset.json')} cannot be used:\n" + "\n".join(f"  {line}" for line in mistakes)
        )
    if not content.get("channel_names"):
        if not content.get("modality"):
            raise CorpusError(
                f"{join(folder, 'dataset.json')} does not name the channels. Add e.g. "
                '"channel_names": {"0": "T1w"}; a channel called "CT" is normalised as Hounsfield units.'
            )
        content["channel_names"] = content["modality"]
    content["file_ending"] = file_ending(folder, content)
    content["labels"] = content.get("labels") or {"background": 0}
    if "numTraining" not in content:
        content["numTraining"] = len(list_images(folder, content, any_names=True))
    return content


def file_ending(folder: str, dataset_json: Mapping[str, Any]) -> str:
    """The ending of the image files, from dataset.json or, where it is silent, from the files themselves."""
    if dataset_json.get("file_ending"):
        return _require_ending(dataset_json["file_ending"], folder)
    if "dataset" in dataset_json:
        entries = list(dataset_json["dataset"].values())
        names = [os.path.basename(entry["images"][0]) for entry in entries if entry.get("images")]
    else:
        names = os.listdir(join(folder, "imagesTr")) if isdir(join(folder, "imagesTr")) else []
    # ".nii.gz" and the like are one ending; dots elsewhere in a name do not count.
    found = {m.group(1) for m in (re.search(r"(\.[A-Za-z][A-Za-z0-9]*(?:\.gz)?)$", n) for n in names) if m}
    if len(found) > 1 and "dataset" not in dataset_json:
        raise CorpusError(
            f"{join(folder, 'imagesTr')} holds files of several kinds: {', '.join(sorted(found))}. "
            f'Say in {join(folder, "dataset.json")} which are meant, e.g. "file_ending": "{min(found)}"'
        )
    if not found:
        raise CorpusError(f"There are no images in {folder}. Expected {join(folder, 'imagesTr', 'case_0000.nii.gz')}.")
    return min(found)


def _require_ending(ending: object, folder: str) -> str:
    # Files are made with it, such as those of labels and predictions.
    if not isinstance(ending, str) or not re.fullmatch(r"(?:\.[A-Za-z0-9_-]+)+", ending):
        raise CorpusError(f'"file_ending" in {join(folder, "dataset.json")} is {ending!r}. Expected e.g. ".nii.gz"')
    return ending


def list_images(
    raw_folder: str, dataset_json: Mapping[str, Any], *, any_names: bool = False
) -> dict[str, dict[str, Any]]:
    """{case: {"images": [absolute paths, one per channel], "label": path or None}}, in nnU-Net's order.

    nnU-Net's rules (nnunetv2.utilities.utils.get_filenames_of_train_images_and_targets), but labels are optional: the
    "dataset" entries of dataset.json, environment variables expanded and paths relative to `raw_folder`; otherwise
    imagesTr/<case>_<4 digits><ending> with labelsTr/<case><ending> where that file exists. Raises CorpusError, also for
    names that no case may have, unless `any_names` (for who gives the images other names).
    """
    if "dataset" in dataset_json:
        cases = _from_entries(raw_folder, dataset_json["dataset"])
    elif isdir(join(raw_folder, "imagesTr")):
        cases = _from_folders(raw_folder, file_ending(raw_folder, dataset_json))
    else:
        raise CorpusError(
            f'{join(raw_folder, "dataset.json")} has no "dataset" entry and there is no {join(raw_folder, "imagesTr")}. '
            "Either put the images there as <case>_0000.nii.gz, or point at them: "
            '"dataset": {"case": {"images": ["/path/to/image.nii.gz"]}}'
        )
    if os.environ.get(TEST_IMAGES) == "1":
        cases = _with_test_images(raw_folder, cases, file_ending(raw_folder, dataset_json))
    if not any_names:
        require_case_names(cases, raw_folder)
    _require_same_number_of_channels(raw_folder, cases)
    _require_named_channels(raw_folder, cases, dataset_json.get("channel_names") or dataset_json.get("modality"))
    return cases


def files_of_cases(folder: str, ending: str) -> dict[str, list[str]]:
    """{case: its files, one per channel} of a folder of images that are called CASE_0000, CASE_0001, ... with this ending.

    nnU-Net looks for every case among all files, in processes; with tens of thousands of images only grouping is fast enough.
    """
    pattern = re.compile(r"(.+)_\d\d\d\d" + re.escape(ending))
    grouped: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        match = pattern.fullmatch(name)
        if match:
            grouped.setdefault(match[1], []).append(join(folder, name))
    return grouped


def absolute_path(path: str, folder: str) -> str:
    """`path` relative to `folder`, with environment variables expanded unless there is a file that is called so."""
    literal = os.path.abspath(join(folder, path))
    if "$" not in path or os.path.lexists(split_volume(literal)[0]):
        return literal
    return os.path.abspath(join(folder, os.path.expandvars(path)))


def _from_entries(folder: str, entries: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    where = f'"dataset" in {join(folder, "dataset.json")}'
    if not entries:
        raise CorpusError(f"{where} is empty: there is nothing to train on.")
    cases: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        images = entry.get("images") if isinstance(entry, Mapping) else None
        if not isinstance(images, (list, tuple)) or not images:
            raise CorpusError(f'{where}: case {name!r} names no images. Expected {{"images": ["path", ...]}}')
        label = entry.get("label")
        cases[name] = {
            "images": [absolute_path(image, folder) for image in images],
            "label": absolute_path(label, folder) if label else None,
        }
    files = [f for case in cases.values() for f in [*case["images"], case["label"]] if f is not None]
    missing = [f for address in files for f in files_of(address) if not isfile(f)]
    if missing:
        raise CorpusError(
            f"{len(missing)} of {len(files)} files named by {where} do not exist:\n{shortened(missing)}\n"
            "If they moved, correct the paths; environment variables in them must be set here as well."
        )
    return cases


def _from_folders(folder: str, ending: str) -> dict[str, dict[str, Any]]:
    images, labels = join(folder, "imagesTr"), join(folder, "labelsTr")
    grouped = files_of_cases(images, ending)
    if not grouped:
        names = sorted(os.listdir(images))
        seen = f" It holds e.g. {names[0]}." if names else ""
        raise CorpusError(
            f"No image in {images} is called <case>_0000{ending}.{seen} The four digits are the channel; the ending is "
            f'"file_ending" in {join(folder, "dataset.json")}.'
        )
    labelled = set(os.listdir(labels)) if isdir(labels) else set()
    return {
        case: {
            "images": grouped[case],
            "label": join(labels, case + ending) if case + ending in labelled else None,
        }
        for case in sorted(grouped)
    }


def _with_test_images(folder: str, cases: Mapping[str, dict[str, Any]], ending: str) -> dict[str, dict[str, Any]]:
    """The cases and those of imagesTs, without labels; raises CorpusError where a name is in both."""
    images = join(folder, "imagesTs")
    grouped = files_of_cases(images, ending) if isdir(images) else {}
    found = {case: {"images": files, "label": None} for case, files in grouped.items()}
    both = sorted(found.keys() & cases.keys())
    if both:
        raise CorpusError(
            f"{len(both)} cases are in imagesTr and in imagesTs of {folder}, e.g. {both[0]}. Rename one of the two, or do "
            "without --with-test-images."
        )
    return {**cases, **found}


def _require_same_number_of_channels(folder: str, cases: Mapping[str, Mapping[str, Any]]) -> None:
    by_count: dict[int, list[str]] = {}
    for name, case in cases.items():
        by_count.setdefault(len(case["images"]), []).append(name)
    if len(by_count) > 1:
        lines = [f"{count} file(s): {len(names)} cases, e.g. {names[0]}" for count, names in sorted(by_count.items())]
        raise CorpusError(
            f"The cases in {folder} differ in their number of channels:\n{shortened(lines)}\n"
            "All cases of one dataset have the same channels. Put the others into a dataset of their own; several "
            "datasets can be pre-trained on together: nnUNetv2_pretrain ID ID"
        )


def _require_named_channels(folder: str, cases: Mapping[str, Mapping[str, Any]], names: Any) -> None:
    """Raise CorpusError where dataset.json names more or fewer channels than a case has files."""
    example, case = next(iter(cases.items()))
    found = len(case["images"])
    if not isinstance(names, Mapping) or len(names) == found:
        return
    numbers = ", ".join(f"_{number:04d}" for number in range(found))
    suffixes = f" ({numbers})" if found <= 4 else ""
    named = ", ".join(map(str, names.values()))
    wanted = json.dumps({str(n): str(names.get(str(n), f"channel {n}")) for n in range(found)})
    raise CorpusError(
        f"{found} file{'s' * (found != 1)} per case{suffixes}, e.g. {example}, but {join(folder, 'dataset.json')} names "
        f'{len(names)} channel{"s" * (len(names) != 1)} ({named}). Either write "channel_names": {wanted}, or take the files '
        "that are too many out of the folder."
    )


def shortened(lines: list[str]) -> str:
    """The first lines, indented, and how many more there are."""
    shown = [f"  {line}" for line in lines[:NUM_SHOWN]]
    more = len(lines) - NUM_SHOWN
    return "\n".join([*shown, f"  ... and {more} more"] if more > 0 else shown)
