"""Which cases a cell trains on and which it is tested on: folds, and within them nested few."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from nnunet_ssl.errors import CorpusError

Split = dict[str, list[str]]  # {"train": cases, "val": cases}


def draw_order(dataset: str, fold: int, seed: int, subjects: Mapping[str, str]) -> list[str]:
    """All cases of {case: subject} in the order in which they are labelled: subject by subject, drawn by their hashes.

    A subject's place depends on data set, fold, seed and its own name alone, so the first 10 are among the first 50, and a case
    that is added later changes nothing about the others' order.
    """

    def place(case: str) -> tuple[str, str]:
        text = f"{dataset}/{fold}/{seed}/{subjects[case]}"
        return hashlib.sha256(text.encode()).hexdigest(), case

    return sorted(subjects, key=place)


def labelled_subset(
    training: Sequence[str], number: int | str, dataset: str, fold: int, seed: int, subjects: Mapping[str, str]
) -> list[str]:
    """The first `number` of a fold's training cases by `draw_order`, sorted; all of them for "all".

    Of a fold and a seed, it is the same for every arm. Raises CorpusError where there are fewer cases.
    """
    if number == "all":
        return sorted(training)
    wanted = int(number)
    if wanted > len(training):
        raise CorpusError(
            f"{dataset}: fold {fold} has {len(training)} training cases, and {wanted} labelled ones are asked for. Use at most "
            f"--labelled {len(training)}, or all."
        )
    return sorted(draw_order(dataset, fold, seed, {case: subjects[case] for case in training})[:wanted])


def require_folds(dataset: str, splits: Sequence[Split], folds: Sequence[int]) -> None:
    """Raise CorpusError for folds that there are not, or that hold nothing, or test on what they train on."""
    missing = [fold for fold in folds if fold >= len(splits)]
    if missing:
        there = f"{len(splits)} folds, 0 to {len(splits) - 1}" if splits else "no folds"
        raise CorpusError(f"{dataset} has {there}; asked for: {', '.join(map(str, missing))}. Choose others with -f.")
    empty = [fold for fold in folds if not splits[fold]["train"] or not splits[fold]["val"]]
    if empty:
        raise CorpusError(
            f"{dataset}: fold {', '.join(map(str, empty))} has no labelled training cases, or none to test on. Choose others "
            "with -f."
        )
    for fold in folds:
        both = sorted(set(splits[fold]["train"]) & set(splits[fold]["val"]))
        if both:
            raise CorpusError(
                f"{dataset}: fold {fold} tests on {len(both)} of its training cases ({', '.join(both[:3])}), which shows "
                "nothing. Correct its splits_final.json."
            )
