"""Which case to preprocess next, when several processes share them, and what became of the bad ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from os.path import isfile, join
from typing import Any

from nnunet_ssl.corpus.images import shortened
from nnunet_ssl.corpus.left_out import (
    FILE,
    clear_left_out,
    left_out_row,
    read_left_out,
    still_left_out,
    update_left_out,
)
from nnunet_ssl.corpus.unusable_labels import FILE as LABELS
from nnunet_ssl.corpus.unusable_labels import note_unusable
from nnunet_ssl.files.locks import Lock
from nnunet_ssl.files.participants import MAX_DEATHS, Participant
from nnunet_ssl.planners.sharing.finished import STATE, is_finished
from nnunet_ssl.planners.sharing.made_from import Origin, Part
from nnunet_ssl.planners.sharing.workers import Task

LOCK = f"{FILE}.lock"


def left_out_here(base: str, cases: Mapping[str, Mapping[str, Any]], step: str) -> set[str]:
    """The cases whose unchanged files the fingerprint or this `step` left out; other steps ask for other things."""
    recorded = read_left_out(base)
    return {case for case in still_left_out(base, cases) if recorded[case]["step"] in ("fingerprint", step)}


def record(base: str, examined: set[str], found: Mapping[str, Mapping[str, Any]]) -> None:
    """Update left_out_images.json while no other process does."""
    if found or isfile(join(base, FILE)):
        with Lock(join(base, LOCK), "writing the list of images that are left out").waiting():
            update_left_out(base, examined, found)


def record_labels(
    base: str, examined: set[str], found: Mapping[str, str], cases: Mapping[str, Mapping[str, Any]]
) -> None:
    """Update unusable_labels.json while no other process does, and say what was found."""
    if found or isfile(join(base, LABELS)):
        with Lock(join(base, LOCK), "writing the list of labels that cannot be used").waiting():
            note_unusable(base, examined, found, cases)
    if found:
        lines = [f"{case}: {reason}" for case, reason in sorted(found.items())]
        print(
            f"{len(found)} labels cannot be used, listed in {join(base, LABELS)}. Their images are pre-trained on, which needs "
            f"no labels, and left out of fine-tuning:\n{shortened(lines)}"
        )


def step_of(output: str) -> str:
    """What left_out_images.json calls the preprocessing into a folder."""
    return f"preprocessing {os.path.basename(output)}"


def try_again(base: str, step: str | None = None) -> None:
    """Forget what was left out, or what one step left out, so that these images are tried again."""
    if isfile(join(base, FILE)):
        with Lock(join(base, LOCK), "writing the list of images that are left out").waiting():
            clear_left_out(base, step)


class Distribution:
    """Hands out the cases that are not finished, each to one process at a time.

    `output` is the folder of preprocessed cases, `base` the data set's folder around it, `step` what left_out_images.json
    calls this work, `known` what cases were made from so far. Iterating gives tasks, None while only others have something
    to do, and ends when all is done.
    """

    def __init__(
        self,
        participant: Participant,
        output: str,
        base: str,
        cases: Mapping[str, Mapping[str, Any]],
        todo: list[str],
        step: str,
        known: Mapping[str, Origin] | None = None,
    ) -> None:
        self.origins = Part(state_folder(output), participant.name, known or {})
        self.participant, self.output, self.base, self.cases, self.step = participant, output, base, cases, step
        self.left_out: dict[str, dict[str, Any]] = {}  # found by this process
        self.by_others = 0
        self._queue = list(todo)
        if participant.others() and todo:
            start = int.from_bytes(os.urandom(4), "big") % len(todo)
            self._queue = todo[start:] + todo[:start]  # or all would compete for the same cases
        self._waiting: list[str] = []
        self._stamp: float | None = None
        self._known_bad: set[str] = set()

    def __iter__(self) -> Iterator[Task | None]:
        while self._queue:
            self._waiting = []
            for case in self._queue:
                task = self._offer(case)
                if task is not None:
                    yield task
            if self._waiting:
                yield None
            self._queue = self._waiting

    def _offer(self, case: str) -> Task | None:
        if self._done(case):
            self.by_others += 1
            return None
        deaths = self.participant.claim(case)
        if deaths is None:
            self._waiting.append(case)
            return None
        if self._done(case):  # between the look and the claim
            self.by_others += 1
            self.participant.release(case)
            return None
        if deaths >= MAX_DEATHS:
            self.refuse(case, f"{deaths} processes died while they worked on it")
            return None
        return self.task(case)

    def task(self, case: str) -> Task:
        """A case with the arguments it is preprocessed with; what it is made from is written down."""
        files = self.cases[case]
        self.origins.begin(case, files)
        return Task(case, (join(self.participant.work, case), files["images"], files["label"], files.get("modality")))

    def refuse(self, case: str, reason: str) -> None:
        """Leave a case out, so that every process knows."""
        self.left_out[case] = left_out_row(self.cases[case], reason, self.step)
        record(self.base, {case}, {case: self.left_out[case]})
        self.participant.release(case)

    def _done(self, case: str) -> bool:
        return is_finished(self.output, case) or case in self._bad()

    def _bad(self) -> set[str]:
        """The cases that anyone has left out, read again only when the list has changed."""
        path = join(self.base, FILE)
        stamp = os.stat(path).st_mtime_ns if isfile(path) else 0
        if stamp != self._stamp:
            self._stamp = stamp
            self._known_bad = left_out_here(self.base, self.cases, self.step)
        return self._known_bad


def summary(left_out: Mapping[str, Mapping[str, Any]]) -> str:
    """How many images were left out for which kind of reason, the most frequent first."""
    kinds = Counter(str(entry["reason"]).partition(":")[0].split(" (")[0] for entry in left_out.values())
    return "; ".join(f"{count} x {kind}" for kind, count in kinds.most_common())


def state_folder(output: str) -> str:
    """Where the processes that work on `output` keep their notes."""
    return join(output, STATE)
