"""targets.csv: what is known of every image, a column per target. Kinds of targets are inferred, and can be stated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os.path import basename
from typing import Any

import numpy as np
import pandas as pd

from nnunet_ssl.corpus.images import shortened
from nnunet_ssl.corpus.sources.csv_table import read_rows
from nnunet_ssl.errors import CorpusError, SettingsError
from nnunet_ssl.messages import counted
from nnunet_ssl.nearest import did_you_mean

FILE = "targets.csv"
CASE, SUBJECT = "case", "subject"
BINARY, MULTICLASS, REGRESSION = "binary", "multiclass", "regression"
KINDS = (BINARY, MULTICLASS, REGRESSION)
MOST_CLASSES = 20  # whole numbers with more different values are a measurement
CASES_PER_CLASS = 5  # and so are those with fewer cases per value, on average
FEWEST = 2  # cases with a value, without which there is nothing to learn


@dataclass(frozen=True)
class Target:
    """A column: its kind, its classes in order (none of a regression), and the value of every case that has one.

    Values are numbers of classes, or measurements in their own unit. Of a binary target class 1 is the one to be found.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    values: Mapping[str, float]

    @property
    def outputs(self) -> int:
        """Numbers that a network gives for it."""
        return len(self.classes) if self.kind == MULTICLASS else 1

    def __str__(self) -> str:
        cases = counted(len(self.values), "case")
        if self.kind == REGRESSION:
            values = list(self.values.values())
            return f"{self.name}: regression, {min(values):g} to {max(values):g}, {cases}"
        counts = Counter(self.values.values())
        shown = ", ".join(f"{name} ({counts[n]})" for n, name in enumerate(self.classes))
        return f"{self.name}: {self.kind}, {shown}"


def read_targets(
    file: str,
    subjects: Mapping[str, str | None],
    *,
    columns: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> list[Target]:
    """The targets in a table (CSV, TSV, Parquet) of the cases {case: subject}.

    A row is a case (column `case`) or a person (column `subject`), whose value holds for all their cases. columns: which to take;
    None: all others. kinds: of columns whose kind is not to be inferred. Numbers 0 and 1, or two texts, are binary; texts and a
    few whole numbers are classes; other numbers a measurement. Empty cells are unknown values.

    Raises CorpusError with everything that is wrong with the table, by row; SettingsError for columns and kinds there are not.
    """
    table, mistakes = read_rows(file, texts=(CASE, SUBJECT))
    table = table.rename(columns={str(name): str(name).strip() for name in table.columns})
    by = next((key for key in (CASE, SUBJECT) if key in table), None)
    if by is None:
        raise CorpusError(
            f"{file} has no column `{CASE}` (nnU-Net's case) or `{SUBJECT}`. It has: {', '.join(map(str, table.columns))}."
        )
    chosen = _columns(file, [str(c) for c in table.columns if c not in (CASE, SUBJECT, "where")], columns, kinds or {})
    wrong = [str(mistake) for mistake in mistakes]
    members = _members(subjects, by)
    wrong += _bad_rows(table, by, members, file)
    good = table[table[by].map(lambda key: key is not None and str(key) in members) & ~table.duplicated(by)]
    targets = []
    for column in chosen:
        try:
            targets.append(_target(column, good, by, members, (kinds or {}).get(column)))
        except ValueError as error:
            wrong.append(f"column {column}: {error}")
    if wrong:
        raise CorpusError(f"{file} cannot be used as it is, {counted(len(wrong), 'mistake')}:\n{shortened(wrong)}")
    return targets


def _columns(file: str, known: list[str], wanted: Sequence[str] | None, kinds: Mapping[str, str]) -> list[str]:
    for name in [*(wanted or ()), *kinds]:
        if name not in known:
            raise SettingsError(
                f"{file} has no column {name!r} of targets.{did_you_mean(name, known)} It has: {', '.join(known) or 'none'}.",
                found=name,
            )
    for name, kind in kinds.items():
        if kind not in KINDS:
            raise SettingsError(f"The kind of {name} is one of {', '.join(KINDS)}, found {kind!r}.", found=kind)
    if not known:
        raise CorpusError(f"{file} has no column beside `{CASE}` and `{SUBJECT}`, so there is no target.")
    return list(wanted or known)


def _members(subjects: Mapping[str, str | None], by: str) -> dict[str, list[str]]:
    """{key of a row: its cases}; a person is also known without the name of the data set before the slash."""
    if by == CASE:
        return {case: [case] for case in subjects}
    members: dict[str, list[str]] = {}
    for case, subject in subjects.items():
        for key in {str(subject), str(subject).rpartition("/")[2]} if subject else ():
            members.setdefault(key, []).append(case)
    return members


def _bad_rows(table: pd.DataFrame, by: str, known: Collection[str], file: str) -> list[str]:
    wrong = []
    repeated = table.duplicated(by) & table[by].notna()
    for where, key, again in zip(table.get("where", basename(file)), table[by], repeated, strict=True):
        if key is None or pd.isna(key):
            wrong.append(f"{where}: the {by} is empty")
        elif str(key) not in known:
            wrong.append(f"{where}: there is no {by} {key}.{did_you_mean(str(key), known)}")
        elif again:
            wrong.append(f"{where}: another row has the {by} {key}")
    return wrong


def _target(name: str, table: pd.DataFrame, by: str, members: Mapping[str, list[str]], stated: str | None) -> Target:
    """A column as a target; raises ValueError in the words of the list of mistakes."""
    cells = {
        str(key): value
        for key, value in zip(table[by], table[name], strict=True)
        if value is not None and not pd.isna(value)
    }
    if len(cells) < FEWEST:
        raise ValueError(f"only {counted(len(cells), 'row')} of the cases here with a value, too few to learn from")
    kind = stated or infer_kind(list(cells.values()))
    if kind == REGRESSION:
        # Of a column that holds texts too, numbers arrive as texts.
        texts = [value for value in cells.values() if not _is_number(value) and _order(str(value))[0]]
        if texts:
            raise ValueError(f"a regression needs numbers, found {str(texts[0])!r}")
        classes: tuple[str, ...] = ()
        values = {key: float(value) for key, value in cells.items()}
        if not np.isfinite(list(values.values())).all():
            raise ValueError("a regression needs finite numbers, found an infinite one")
    else:
        classes = tuple(sorted({_text(value) for value in cells.values()}, key=_order))
        if kind == BINARY and len(classes) > 2:
            raise ValueError(f"binary means two values, found {len(classes)}: {', '.join(classes[:5])}")
        values = {key: float(classes.index(_text(value))) for key, value in cells.items()}
    if len(set(values.values())) < 2:
        raise ValueError(f"all rows say {_text(next(iter(cells.values())))}, so there is nothing to tell apart")
    return Target(name, kind, classes, {case: value for key, value in values.items() for case in members[key]})


def infer_kind(values: Sequence[Any]) -> str:
    """What a column most likely is, by its known values."""
    different = {_text(value) for value in values}
    if len(different) == 2:
        numbers = all(_is_number(value) for value in values)
        return REGRESSION if numbers and not different <= {"0", "1", "2", "-1"} else BINARY
    if not all(_is_number(value) for value in values):
        return MULTICLASS
    whole = all(float(value).is_integer() for value in values)
    few = len(different) <= min(MOST_CLASSES, len(values) / CASES_PER_CLASS)
    return MULTICLASS if whole and few else REGRESSION


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and bool(np.isfinite(value))
    )


def _text(value: Any) -> str:
    """A class by its name: 1 and 1.0 are the same."""
    return f"{value:g}" if _is_number(value) else str(value)


def _order(name: str) -> tuple[int, float, str]:
    """Numbers by their size, then texts by the alphabet."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
