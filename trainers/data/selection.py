"""Which images of a corpus a run uses, how they are split, and how often each is drawn: all by the corpus table.

Every image of a data set is in the table, with or without a corpus.parquet beside its raw data: what the file does not say
is filled in where it is known, from the names of cases, data sets and channels.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from os.path import join

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from nnunet_ssl.corpus.filters import matching
from nnunet_ssl.corpus.sampling import sampling_weights
from nnunet_ssl.corpus.subjects import subject_of
from nnunet_ssl.corpus.table import FILE, read_table
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.trainers.data.corpus import CorpusDataset, storage_and_cases

KNOWN = ("case", "dataset", "subject", "modality", "channels")  # of every image, table or not
NUM_VALUES = 8  # of a column, named in an error message


def corpus_table(datasets: Sequence[CorpusDataset], columns: Iterable[str] = ()) -> pd.DataFrame:
    """A row per preprocessed case: `identifier` (`<data set>/<case>`), `source`, the columns of KNOWN and `columns`.

    Columns that no data set has are not there; where only some have them, the images of the others have no value.
    """
    parts = [_table_of(dataset, list(dict.fromkeys(columns))) for dataset in datasets]
    return pd.concat(parts, ignore_index=True).sort_values("identifier", ignore_index=True)


def subject_of_image(table: pd.DataFrame) -> dict[str, str]:
    """{identifier: the person it shows}; a person of one origin is the same in whatever data set of the corpus."""
    persons = table["dataset"].astype(str) + "/" + table["subject"].astype(str)
    return dict(zip(table["identifier"], persons, strict=True))


def columns_of(expression: str | None) -> list[str]:
    """The names in a filter; none when it cannot be read, which evaluating it will say better."""
    try:
        tree = ast.parse((expression or "").strip() or "0", mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return sorted({n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called})


def apply_filter(datasets: Sequence[CorpusDataset], expression: str) -> tuple[set[str], str]:
    """(identifiers that match, a sentence for the log).

    Raises CorpusError for an expression that is wrong, for one that selects nothing, saying which values there are, and when
    a data set is left out as a whole because it lacks a column.
    """
    names = columns_of(expression)
    table = corpus_table(datasets, names)
    if set(names) - set(table.columns):
        empty = {c: pd.Series(dtype=object) for s in datasets for c in stored_columns(s)}
        matching(pd.DataFrame({**empty, **{c: pd.Series(dtype=object) for c in KNOWN}}), expression)  # raises
    chosen = matching(table.assign(case=table["identifier"].str.partition("/")[2]), expression)
    if not chosen.any():
        raise CorpusError(
            f"None of the {len(table)} preprocessed images matches the filter {expression!r}. What there is:\n"
            + "\n".join(f"  {describe_column(table, name)}" for name in names if name in table)
        )
    counts = table["source"].value_counts()
    matched = table.loc[chosen, "source"].value_counts()
    for dataset in datasets:
        lacking = [n for n in names if n not in (*KNOWN, *stored_columns(dataset))]
        if lacking and counts.get(dataset.name, 0) and not matched.get(dataset.name, 0):
            raise CorpusError(
                f"The filter {expression!r} leaves out all {counts[dataset.name]} images of {dataset.name}, which knows nothing "
                f"of {', '.join(lacking)}. To keep them: ({expression}) or missing({lacking[0]}); to do without them: train "
                f"without {dataset.name}."
            )
    shares = ", ".join(f"{matched.get(name, 0)} of {count} of {name}" for name, count in counts.items())
    return set(table.loc[chosen, "identifier"]), f"The filter {expression} keeps {shares}."


def weights_for(datasets: Sequence[CorpusDataset], identifiers: Sequence[str], by: str) -> np.ndarray | None:
    """How often each of `identifiers` is drawn (sum 1) when all images, subjects, modalities or data sets are drawn alike."""
    if by == "images":
        return None
    table = corpus_table(datasets).drop(columns="case").rename(columns={"identifier": "case"})
    return sampling_weights(table.set_index("case", drop=False).loc[list(identifiers)], by).to_numpy()


def describe_column(table: pd.DataFrame, name: str) -> str:
    """`modality: T1w (812), FLAIR (400), none (3)`, or the range of numbers with more values than can be listed."""
    column = table[name]
    missing = int(column.isna().sum())
    counts = column.value_counts()
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype) and len(counts) > 1:
        text = f"{column.min():g} to {column.max():g}, median {column.median():g}"
    else:
        text = ", ".join(f"{value} ({count})" for value, count in counts.head(NUM_VALUES).items()) or "no value at all"
        text += f" and {len(counts) - NUM_VALUES} more" if len(counts) > NUM_VALUES else ""
    return f"{name}: {text}{f'; {missing} images have none' if missing and len(counts) else ''}"


def stored_columns(dataset: CorpusDataset) -> list[str]:
    """The columns of a data set's corpus.parquet; none without one."""
    if dataset.table_folder is None:
        return []
    return [str(name) for name in pq.read_schema(join(dataset.table_folder, FILE)).names]


def _table_of(dataset: CorpusDataset, columns: Sequence[str]) -> pd.DataFrame:
    _, cases = storage_and_cases(dataset.folder)
    table = pd.DataFrame(index=pd.Index(cases, dtype=object, name="case"))
    there = stored_columns(dataset)
    wanted = [c for c in dict.fromkeys([*KNOWN[1:], *columns]) if c in there and c != "case"]
    if dataset.table_folder is not None:
        stored = read_table(dataset.table_folder, ["case", *wanted], with_problems=True)
        table = stored.set_index("case").reindex(table.index).convert_dtypes()
    known: Mapping[str, object] = {
        "dataset": dataset.name,
        "subject": pd.Series([subject_of(case) for case in cases], index=table.index, dtype=object),
        "modality": "+".join(dataset.channels) or None,
        "channels": len(dataset.channels) or None,
    }
    for name, value in known.items():
        text = name != "channels"
        own = table[name] if name in table else pd.Series(pd.NA, index=table.index, dtype="string" if text else "Int64")
        own = own.astype("string" if text else "Int64")
        table[name] = (
            own if value is None else own.fillna(value.astype("string") if isinstance(value, pd.Series) else value)
        )
    table = table.reset_index()
    return table.assign(identifier=dataset.name + "/" + table["case"].astype(str), source=dataset.name)
