"""Which images a filter leaves to be preprocessed, by the tables of the raw data sets; and whether it is right at all."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from nnunet_ssl.corpus.datasets import raw_folder
from nnunet_ssl.corpus.filters import check_expression, matching, require_syntax
from nnunet_ssl.corpus.table import COLUMNS, has_table, read_table
from nnunet_ssl.errors import CorpusError

FURTHER = ("source", "identifier")  # columns that a run adds


def wanted_cases(names: Sequence[str], expression: str | None) -> dict[str, set[str]]:
    """{data set: its cases that match} where there are tables to tell; before anything runs, in fractions of a second.

    Raises CorpusError for an expression that cannot be evaluated on any of the tables, and where all data sets have tables
    and no image matches.
    """
    if expression is None:
        return {}
    tables = {n: read_table(raw) for n in names if (raw := raw_folder(n)) is not None and has_table(raw)}
    columns = dict.fromkeys([*COLUMNS, *FURTHER, *(c for table in tables.values() for c in table.columns)])
    types = {c: t.dtype for table in tables.values() for c, t in table.items()}
    require_syntax(expression)
    if len(tables) == len(names):  # else it may speak of what only the preprocessed data set knows
        check_expression(pd.DataFrame({c: pd.Series(dtype=types.get(c, object)) for c in columns}), expression)
    wanted = {}
    for name, table in tables.items():
        if _named(expression) - set(table.columns):
            continue  # the run decides, which fills in what it knows of every image
        wanted[name] = set(table.loc[matching(table, expression), "case"])
    if len(wanted) == len(names) and not any(wanted.values()):
        raise CorpusError(
            f"None of the {sum(map(len, tables.values()))} images of {', '.join(names)} matches the filter {expression!r}; "
            f"nothing was done. Columns and values: nnUNetv2_pretrain_corpus -d NUMBER --columns"
        )
    return wanted


def _named(expression: str) -> set[str]:
    """The words of an expression that may be columns."""
    without_texts = re.sub(r"'[^']*'|\"[^\"]*\"", "", expression)
    words = set(re.findall(r"[A-Za-z_]\w*(?!\w*\s*\()", without_texts))
    return words - {"and", "or", "not", "in", "True", "False", "None"}
