"""Whether a pre-training has seen the images that a comparison tests on: by data set, by file, by subject."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nnunet_ssl.checkpoints.description.conventions import read_conventions
from nnunet_ssl.checkpoints.hub.resolve import resolve_source
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.corpus.datasets import raw_folder
from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.corpus.subjects import subjects_of
from nnunet_ssl.errors import NnunetSSLError
from nnunet_ssl.messages import counted


def corpus_of(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the data sets that a checkpoint says it was pre-trained on."""
    ssl = checkpoint.get("ssl")
    named = ssl.get("datasets") if isinstance(ssl, Mapping) else None
    names = [name for name in named if isinstance(name, str)] if isinstance(named, (list, tuple)) else []
    first = read_conventions(checkpoint).dataset
    return tuple(dict.fromkeys([*([first] if first else []), *names]))


def seen_in_pretraining(
    weights: str,
    dataset: str,
    held_out: Collection[str],
    subjects: Mapping[str, str],
    images: Mapping[str, Sequence[str]],
) -> list[str]:
    """Sentences about held-out cases that the weights' corpus holds; empty where nothing shows any.

    subjects: {case: person}, images: {case: files} of the data set that is tested on. Looked at is what the checkpoint says of
    its data sets, and those of them that lie in nnUNet_raw.
    """
    named = corpus_of(read_checkpoint(resolve_source(weights).path))
    if dataset in named:
        return [
            f"{weights} was pre-trained on the images of {dataset}, those tested on among them. It saw none of their labels, "
            "but other images would be a stricter test."
        ]
    people = {subjects[case] for case in held_out if case in subjects}
    files = {os.path.realpath(file) for case in held_out for file in images.get(case, ())}
    told = []
    for name in named:
        found_files, found_people = _of_corpus(name)
        both, same = len(files & found_files), len(people & found_people)
        if both or same:
            what = counted(both, "image file") if both else counted(same, "subject")
            told.append(f"{weights} was pre-trained on {name}, which holds {what} of {dataset} that are tested on.")
    return told


def _of_corpus(name: str) -> tuple[set[str], set[str]]:
    """Image files and subjects of a data set; none where it is not here, or cannot be read any more."""
    folder = raw_folder(name)
    if folder is None:
        return set(), set()
    try:
        cases = list_images(folder, read_dataset_json(folder))
    except NnunetSSLError:
        return set(), set()
    files = {os.path.realpath(file) for entry in cases.values() for file in entry["images"]}
    return files, set(subjects_of(folder, cases, name).values())
