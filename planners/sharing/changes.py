"""What was preprocessed against what is there now: which cases are made anew, which are dropped, and why."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from os.path import join
from typing import Any

from nnunet_ssl.corpus.stamps import all_stamps, digest_of
from nnunet_ssl.planners.sharing.finished import STATE, finished_cases
from nnunet_ssl.planners.sharing.made_from import Origin, needs_joining, read_origins

NUM_SHOWN = 5  # cases named in a line
NUM_THREADS = 8  # that read files whose stamps have changed


@contextmanager
def no_collection() -> Iterator[None]:
    """No search for garbage while the block makes objects by the hundred thousand, all of which stay.

    Python looks through them again and again meanwhile, which takes as long as making them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass
class Changes:
    """Differences between a folder of preprocessed cases and the data set; names of cases in the data set's order."""

    finished: set[str] = field(default_factory=set)  # those that stay
    changed: dict[str, str] = field(default_factory=dict)  # what of them: image, label, modality
    gone: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)  # other place or time, same content
    adopted: list[str] = field(
        default_factory=list
    )  # made before their sources were written down, and not older than these
    origins: dict[str, Origin] = field(default_factory=dict)  # of those that stay
    before: dict[str, Origin] = field(default_factory=dict)  # as they were read, of all
    to_write: bool = False  # whether the table on the disk says something else

    def lines(self, name: str, where: str = "") -> list[str]:
        """A line for each kind of change; `where` to look, in a data set with several folders."""
        return [f"{name}{where}: {line}" for line in self._told(name)]

    def _told(self, name: str) -> list[str]:
        told = []
        if self.changed:
            what = [f"{case} ({reason})" for case, reason in self.changed.items()]
            told.append(f"{len(what)} cases changed since they were preprocessed and are made anew: {_some(what)}.")
        if self.gone:
            told.append(f"{len(self.gone)} cases are no longer in {name} and are dropped: {_some(self.gone)}.")
        if self.touched:
            told.append(
                f"the files of {len(self.touched)} cases have another place or time and the same content; "
                f"nothing is made anew: {_some(self.touched)}."
            )
        if self.adopted:
            told.append(
                f"nothing says what {len(self.adopted)} preprocessed cases were made from; they are taken as made "
                "from the present files, none of which is newer."
            )
        return told


def compare(folder: str, cases: Mapping[str, Mapping[str, Any]]) -> Changes:
    """Compare the finished cases of `folder` with the data set's (`list_images`, with modality); changes nothing.

    Files whose stamps are what they were are not read.
    """
    state, changes = join(folder, STATE), Changes()
    finished = finished_cases(folder)  # listed first: each of these had its line before
    known = changes.before = read_origins(state)
    changes.gone = sorted(finished - cases.keys())
    kept = [case for case in cases if case in finished]
    stamps = all_stamps([(*cases[case]["images"], cases[case]["label"]) for case in kept])
    doubtful = []
    for case, found in zip(kept, stamps, strict=True):
        files, before = cases[case], known.get(case)
        now = (files["images"], files["label"], files.get("modality"), found)
        if before is not None and before[:4] == now:
            changes.finished.add(case)
            changes.origins[case] = before
        else:
            doubtful.append((case, before, Origin(*now)))
    _decide(folder, doubtful, changes)
    changes.to_write = known.keys() != changes.origins.keys() or bool(changes.touched) or needs_joining(state)
    return changes


def _decide(folder: str, doubtful: list[tuple[str, Origin | None, Origin]], changes: Changes) -> None:
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        digests = pool.map(
            lambda d: digest_of((*d[2].images, d[2].label)) if _may_be_same(d[1], d[2]) else "", doubtful
        )
        for (case, before, now), digest in zip(doubtful, digests, strict=True):
            if before is None:
                made = os.stat(join(folder, f"{case}.pkl")).st_mtime_ns
                if any(time > made for time in now.stamps[1::2]):
                    changes.changed[case] = "newer than what was made of it"
                    continue
                changes.adopted.append(case)
                changes.origins[case] = now
            elif digest and digest == before.digest:
                changes.touched.append(case)
                changes.origins[case] = now._replace(digest=digest, turn=before.turn)
            else:
                changes.changed[case] = _what(before, now)
                continue
            changes.finished.add(case)


def _may_be_same(before: Origin | None, now: Origin) -> bool:
    if before is None or not before.digest or before.modality != now.modality:
        return False
    return before.stamps[::2] == now.stamps[::2] and (before.label is None) == (now.label is None)


def _what(before: Origin, now: Origin) -> str:
    of_images = 2 * len(now.images)
    if before.images != now.images or before.stamps[:of_images] != now.stamps[:of_images]:
        return "image"
    return "label" if before.label != now.label or before.stamps != now.stamps else "modality"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more
