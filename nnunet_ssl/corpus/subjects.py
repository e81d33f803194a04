"""Which cases show the same person, and a train / validation split that never divides a person."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from os.path import isfile
from typing import Any

from nnunet_ssl.errors import BadFile
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json

# BIDS: sub-<label> in front, possibly after the name of the dataset it came from.
BIDS_SUBJECT = re.compile(r"^(?:.+?__)?sub-[A-Za-z0-9]+(?=_|$)")
# Sessions and runs, with a hyphen (any label, as in BIDS) or without (a number); a bare number is none of them.
OCCASION = re.compile(
    r"[_-](?:(?:ses|session|visit|tp|timepoint|run|scan|acq|echo|rec|dir|part)-[A-Za-z0-9]+"
    r"|(?:ses|session|visit|tp|timepoint|run|scan|echo)\d+)$",
    re.IGNORECASE,
)
MODALITY = re.compile(
    r"_(?:T1|T2|PD)w?(?:CE|c|Gd)?$|_(?:ce)?T1(?:ce|gd|km)$|_T2(?:star|starw|f|_?FLAIR)$"
    r"|_(?:FLAIR|DWI|ADC|SWI|FA|MD|TRACE|TOF|MRA|angio|bold|asl|cbf|MR|MRI|CT|CTA|CBCT|PET|US)$",
    re.IGNORECASE,
)


def subject_of(case: str) -> str:
    """The person a case shows, as far as its name tells; otherwise the case itself.

    `sub-01_ses-2_T1w` -> `sub-01`, `ds1__sub-01_T1w` -> `ds1__sub-01`, `collection__dataset__subject__session__image` ->
    `collection__dataset__subject`, `P7_ses02_run-1_FLAIR` -> `P7`; `hippocampus_001` stays as it is.
    """
    bids = BIDS_SUBJECT.match(case)
    if bids:
        return bids.group(0)
    parts = case.split("__")
    if len(parts) >= 5:
        return "__".join(parts[:3])
    name = case
    while True:
        shorter = MODALITY.sub("", OCCASION.sub("", name))
        if shorter in ("", name):
            return name
        name = shorter


def subjects_of(dataset_folder: str | None, cases: Iterable[str], name: str = "") -> dict[str, str]:
    """The person each case shows: `<source data set>/<subject>` by the table of a raw data set, otherwise by its name.

    `dataset_folder` is the folder in nnUNet_raw, None where it is not there. Without a table in it, or for cases that the
    table does not know, it is `<name>/<subject_of the case>`: with the data set's `name`, people of several data sets that
    are trained on together stay apart, and one person whom the tables of two of them name is one person.
    """
    from nnunet_ssl.corpus.table import has_table, read_table

    known: dict[str, str] = {}
    if dataset_folder is not None and has_table(dataset_folder):
        table = read_table(dataset_folder, ["case", "dataset", "subject"], with_problems=True)
        table = table[table["subject"].notna()]
        people = table["dataset"].fillna("").str.cat(table["subject"], sep="/")
        known = dict(zip(table["case"], people, strict=True))
    return {case: known.get(case) or "/".join(filter(None, (name, subject_of(case)))) for case in cases}


def split_by_subject(
    cases: Iterable[str], subjects: Mapping[str, str] | None = None, held_out: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """(training, validation) cases in their given order, all cases of a subject on the same side.

    `subjects` maps cases to subjects; without it, `subject_of`. Held out are 1 % of the subjects, at least 5 and at
    most 1000, never more than 20 %, but at least 1. Which ones depends on the hashes of their names alone, so
    that adding images moves few of them; none, when the subjects `held_out` before are given: then exactly those of them
    that are left are held out again, their new images too. With a single subject both sides are all cases.
    """
    of = {case: subjects[case] if subjects is not None else subject_of(case) for case in cases}
    ordered = sorted(set(of.values()), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if len(ordered) <= 1:
        return list(of), list(of)
    wanted = min(max(len(ordered) // 100, 5), 1000)
    again = set(held_out).intersection(ordered)
    chosen = again if 0 < len(again) < len(ordered) else set(ordered[: max(1, min(wanted, len(ordered) // 5))])
    training = [case for case, subject in of.items() if subject not in chosen]
    return training, [case for case, subject in of.items() if subject in chosen]


def stable_split(cases: Iterable[str], subjects: Mapping[str, str], file: str) -> tuple[list[str], list[str]]:
    """`split_by_subject` with the held-out subjects remembered in `file` (JSON), so that adding images changes none.

    The file is written by the first call. Where nothing can be written, the split goes by the hashes alone, and says so.
    """
    remembered: Any = []
    if isfile(file):
        stored = read_json(file)
        remembered = stored["held_out"] if isinstance(stored, dict) and "held_out" in stored else None
        if not isinstance(remembered, list) or not all(isinstance(name, str) for name in remembered):
            raise BadFile(
                f'{file}: holds no list "held_out" of names. Remove it: the same subjects are chosen as a rule.'
            )
    training, validation = split_by_subject(cases, subjects, remembered)
    people = sorted({subjects[case] for case in validation})
    if not remembered and len(set(subjects.values())) > 1:
        try:
            write_json({"held_out": people}, file)
        except OSError as error:
            print(f"The held-out subjects are not remembered: {error}. Images added later may change a few of them.")
    return training, validation
