"""Images of nnU-Net data sets: imagesTr and imagesTs, or the files that dataset.json names."""

from __future__ import annotations

import re
from os import listdir
from os.path import basename, isdir, isfile, join, normpath
from typing import Any

from nnunet_ssl.corpus.dataset_names import is_dataset_name
from nnunet_ssl.corpus.folders import find_raw_dataset
from nnunet_ssl.corpus.images import files_of_cases, list_images, read_dataset_json
from nnunet_ssl.corpus.reader import ENDINGS
from nnunet_ssl.corpus.sources.found import Found, frame
from nnunet_ssl.corpus.subjects import subject_of
from nnunet_ssl.errors import CorpusError


def dataset_folder(source: str) -> str | None:
    """The folder of an nnU-Net data set that `source` names by path, number or name; None when it names none."""
    if isfile(join(source, "dataset.json")):
        return source
    return find_raw_dataset(source) if source.isdecimal() or is_dataset_name(source) else None


def is_decathlon(folder: str) -> bool:
    """Whether a folder with a dataset.json is laid out as in the Medical Decathlon: files without the channel's number."""
    images = join(folder, "imagesTr")
    names = [name for name in listdir(images) if not name.startswith(".")] if isdir(images) else []
    return bool(names) and not any(re.search(r"_\d{4}\.[A-Za-z.]+$", name) for name in names)


def find_in_dataset(source: str, *, test_images: bool = True, split_channels: bool = False) -> Found:
    """The cases of a data set; its labels stay where they are and are no masks.

    `test_images` adds imagesTs; the column `part` says which is which. `split_channels` makes every channel an image of
    its own, with the channel's name as modality. Raises CorpusError.
    """
    folder = dataset_folder(source)
    if folder is None:
        raise CorpusError(f"{source} is no nnU-Net data set: there is no dataset.json.")
    dataset = basename(normpath(folder))
    dataset_json = read_dataset_json(folder, labels=False)
    ending = str(dataset_json["file_ending"])
    if ending.lower() not in ENDINGS:
        raise CorpusError(f"{source}: images end in {ending}; pre-training takes volumes: {', '.join(ENDINGS)}.")
    channels = [str(name) for name in dataset_json["channel_names"].values()]
    cases = {("imagesTr", name): case for name, case in list_images(folder, dataset_json, any_names=True).items()}
    if test_images:
        cases |= {("imagesTs", name): case for name, case in _test_cases(folder, ending).items()}
    rows: list[dict[str, Any]] = []
    for (part, name), case in cases.items():
        images = case["images"]
        if len(images) != len(channels):
            raise CorpusError(
                f"{source}: case {name} has {len(images)} files, dataset.json names {len(channels)} channels."
            )
        row = {
            "subject": subject_of(name),
            "dataset": dataset,
            "label": case["label"],
            "part": part,
            "where": f"{dataset}, {name}",
        }
        if split_channels and len(channels) > 1:
            rows += [
                row | {"name": f"{dataset}__{name}_{channel}", "path": path, "modality": channel}
                for channel, path in zip(channels, images, strict=True)
            ]
        else:
            modality = "+".join(channels)
            several = {"images": images} if len(images) > 1 else {}
            rows.append(row | {"name": f"{dataset}__{name}", "path": images[0], "modality": modality} | several)
    notes = []
    tested = sum(part == "imagesTs" for part, _ in cases)
    if tested:
        notes.append(
            f"{source}: {tested} images come from imagesTs. If this data set's test images are to judge the result, leave "
            "them out: --no-test-images, or later the filter part == 'imagesTr'."
        )
    return Found(frame(rows), [], notes)


def channel_names(source: str) -> list[str]:
    """The names of the channels of a data set."""
    folder = dataset_folder(source)
    return (
        []
        if folder is None
        else [str(name) for name in read_dataset_json(folder, labels=False)["channel_names"].values()]
    )


def _test_cases(folder: str, ending: str) -> dict[str, dict[str, Any]]:
    images = join(folder, "imagesTs")
    grouped = files_of_cases(images, ending) if isdir(images) else {}
    return {case: {"images": files, "label": None} for case, files in grouped.items()}
