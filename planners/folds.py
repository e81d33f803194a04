"""splits_final.json for fine-tuning: folds of labelled cases alone, all images of a person on one side."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from os.path import isfile, join

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_ssl.corpus.datasets import raw_folder
from nnunet_ssl.corpus.splits import FILE, require_splits
from nnunet_ssl.corpus.subjects import subjects_of
from nnunet_ssl.errors import CannotWrite
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json

FOLDS, SEED = 5, 12345  # nnU-Net's


def write_folds(name: str, labelled: Collection[str], cases: Collection[str]) -> None:
    """Write the folds where nnU-Net's own would be wrong: they would hold cases without a label, which count as background.

    Nothing is written where folds are there already, nor where nnU-Net makes the same: five folds of labelled cases that all
    show other people. Fewer people than folds give fewer folds.
    """
    path = join(nnUNet_preprocessed, name, FILE)
    if not labelled:
        return
    if isfile(path):
        _compare(name, path, labelled, cases)
        return
    persons = subjects_of(raw_folder(name), labelled, name)
    number = min(FOLDS, len(set(persons.values())))
    by_person = len(set(persons.values())) < len(labelled)
    if number == FOLDS and not by_person and len(labelled) == len(cases):
        return
    if number < 2:
        print(f"{name}: all labelled images show one person, so there are no folds. Train with -f all.")
        return
    try:
        write_json(make_folds(persons, number), path)
    except CannotWrite as error:
        print(f"{name}: the folds are not stored: {error}")
        return
    people = f" of {len(set(persons.values()))} people" if by_person else ""
    few = f"; with fewer people than {FOLDS} there are as many folds as people" if number < FOLDS else ""
    print(f"{name}: {number} folds of the {len(labelled)} labelled images{people}: {path}{few}.")


def make_folds(persons: Mapping[str, str], number: int) -> list[dict[str, list[str]]]:
    """`number` folds of the cases {case: person}, as nnU-Net draws them; all cases of a person are on one side."""
    everybody = sorted(set(persons.values()))
    if len(everybody) == len(persons):  # of cases then, so that they are nnU-Net's own
        return generate_crossval_split(sorted(persons), seed=SEED, n_splits=number)
    drawn = generate_crossval_split(everybody, seed=SEED, n_splits=number)
    return [{side: sorted(c for c, p in persons.items() if p in set(fold[side])) for side in fold} for fold in drawn]


def folds_of(name: str) -> list[int]:
    """The numbers of a data set's folds; empty where there are no splits yet."""
    path = join(nnUNet_preprocessed, name, FILE)
    return list(range(len(read_json(path)))) if isfile(path) else []


def _compare(name: str, path: str, labelled: Collection[str], cases: Collection[str]) -> None:
    """Say what is wrong with folds that are there; they stay, because trainings may have used them."""
    require_splits(path)
    listed = {case for fold in read_json(path) for side in ("train", "val") for case in fold[side]}
    unlabelled = sorted((listed & set(cases)) - set(labelled))
    missing = sorted(set(labelled) - listed)
    advice = f"To have new folds made, which other trainings will not have used: rm {shlex.quote(path)}"
    if unlabelled:
        print(
            f"WARNING: {name}: {len(unlabelled)} cases in {path} have no label, e.g. {unlabelled[0]}. nnU-Net's own trainers "
            f"take them for pure background; those of this package leave them out. {advice}"
        )
    if missing:
        print(f"{name}: {len(missing)} labelled cases are in no fold, e.g. {missing[0]}. {advice}")
