"""Images listed in a CSV, TSV or Parquet file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from os.path import abspath, basename, dirname

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from nnunet_ssl.corpus.formats.dicom import is_dicom
from nnunet_ssl.corpus.images import absolute_path
from nnunet_ssl.corpus.names import bad_case_names
from nnunet_ssl.corpus.reader import ENDINGS, ending_of
from nnunet_ssl.corpus.sources.found import Found, Mistake, with_source_columns
from nnunet_ssl.corpus.sources.table_lines import MAX_LINE, read_lines
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.entering import why_no_file

MISSING = ("", "na", "n/a", "nan", "null", "none", "<na>")
# Other names under which published tables have these columns.
ALIASES = {
    "path": ("image", "image_path", "file", "filename", "file_path", "filepath", "nifti", "nifti_path"),
    "subject": ("subject_id", "participant_id", "patient", "patient_id", "participant"),
    "session": ("session_id", "visit", "timepoint"),
    "modality": ("sequence", "contrast", "image_modality"),
    "dataset": ("dataset_id", "dataset_name", "collection", "site_dataset"),
    "anatomy_mask": ("anat_mask", "anat_mask_path", "anatomy_mask_path", "brain_mask", "brain_mask_path", "head_mask"),
    "anonymisation_mask": (
        "anonymization_mask",
        "anon_mask",
        "anon_mask_path",
        "anonymised_mask",
        "deface_mask",
        "deface_mask_path",
    ),
    "name": ("case", "case_id"),
    "iqs": ("image_quality_score",),
}
MASKS = ("anatomy_mask", "anonymisation_mask")
TEXT = (*(c for c in ALIASES if c != "iqs"), "volume", "label")
MADE_HERE = ("channels", "bytes", "modified", "problem", "where", "images")


def find_in_table(source: str, dataset: str) -> Found:
    """The images a table lists; relative paths start at its folder, $VARIABLES are replaced.

    Without a column `dataset` all of them belong to `dataset`. Raises CorpusError when it is no table or has no paths.
    """
    table, mistakes = read_rows(source)
    table = rename_columns(table, source)
    if not len(table) and not mistakes:
        raise CorpusError(f"{source} has a header and no rows: it lists no image.")
    if "path" not in table:
        raise CorpusError(
            f"{source} has no column `path` (or {', '.join(ALIASES['path'])}). It has: {', '.join(map(str, table.columns))}."
        )
    table["dataset"] = table["dataset"].fillna(dataset) if "dataset" in table else dataset
    return check_rows(resolve_paths(table, dirname(abspath(source))), mistakes, own_names=True)


def read_rows(source: str, texts: Collection[str] = TEXT) -> tuple[pd.DataFrame, list[Mistake]]:
    """(table with the column `where`, mistakes): missing values as None, numbers as numbers, names such as 007 as text.

    texts: columns that are texts whatever they look like.
    """
    if source.lower().endswith((".parquet", ".pq")):
        reason = why_no_file(source)
        if reason:
            raise CorpusError(f"{source} cannot be read as a table: {reason}.")
        try:
            table = pq.read_table(source).to_pandas()
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(f"{source} cannot be read as Parquet: {error}") from error
        where = pd.Series(
            [f"{basename(source)}, row {i + 1}" for i in range(len(table))], index=table.index, dtype=object
        )
        long = _too_long(table)
        mistakes = [Mistake(w, f"more than {MAX_LINE:,} characters in a cell") for w in where[long]]
        return table.assign(where=where)[~long].reset_index(drop=True), mistakes
    text, delimiter, wrong = read_lines(source)
    first = text.partition(b"\n")[0].decode()
    bad: list[Mistake] = []

    def report(row: pa_csv.InvalidRow) -> str:
        number = "" if row.number is None else f", row {row.number}"
        reason = f"{row.actual_columns} fields, the header has {row.expected_columns}: {row.text[:120]}"
        bad.append(Mistake(f"{basename(source)}{number}", reason))
        return "skip"

    header = [name.strip().strip('"') for name in first.strip("\r\n").split(delimiter)]
    try:
        content = pa_csv.read_csv(
            pa.BufferReader(text),
            read_options=pa_csv.ReadOptions(use_threads=False),  # rows have numbers only then
            parse_options=pa_csv.ParseOptions(
                delimiter=delimiter, invalid_row_handler=report, newlines_in_values=False, ignore_empty_lines=False
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{source} cannot be read as a table in UTF-8: {error}") from error
    skipped = {int(m.where.rpartition(" ")[2]) for m in bad if m.where.rpartition(" ")[2].isdigit()}
    lines = [n for n in range(2, 2 + len(content) + len(bad)) if n not in skipped][: len(content)]
    names = [str(name).strip() for name in content.column_names]
    repeated = [name for number, name in enumerate(names) if name in names[:number]]
    if repeated:  # before pandas has it: older pyarrow refuses to make a table of them
        raise CorpusError(f"{source} has several columns called {', '.join(repeated)}.")
    table = content.to_pandas()
    table.columns = names
    empty = np.logical_and.reduce([table[column].astype(str).str.strip() == "" for column in table.columns])
    table["where"] = [f"{basename(source)}, row {n}" for n in lines]
    return _clean(table[~empty].reset_index(drop=True), texts), sorted([*wrong, *bad], key=_row_of)


def _too_long(table: pd.DataFrame) -> pd.Series:
    """Which rows hold a text that nobody can have meant."""
    long = pd.Series(False, index=table.index)
    for column in table.columns:
        if table[column].dtype == object or isinstance(table[column].dtype, pd.StringDtype):
            lengths = table[column].map(lambda cell: len(cell) if isinstance(cell, (str, bytes)) else 0)
            long |= lengths > MAX_LINE
    return long


def _row_of(mistake: Mistake) -> int:
    number = mistake.where.rpartition(" ")[2]
    return int(number) if number.isdigit() else 0


def rename_columns(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """The table with the names of this package; raises CorpusError when two columns mean the same."""
    lower = {str(name).lower(): str(name) for name in table.columns}
    names: dict[str, str] = {}
    for wanted, others in ALIASES.items():
        present = [lower[alias] for alias in (wanted, *others) if alias in lower]
        if len(present) > 1 and lower.get(wanted) is None:
            raise CorpusError(
                f"{source}: the columns {', '.join(present)} could all be `{wanted}`. Rename one to `{wanted}`."
            )
        if present:
            names[present[0]] = wanted
    renamed = table.rename(columns=names)
    return renamed.drop(columns=[name for name in MADE_HERE if name in renamed and name != "where"])


def resolve_paths(
    table: pd.DataFrame, folder: str, columns: tuple[str, ...] = ("path", *MASKS, "label")
) -> pd.DataFrame:
    """The table with absolute paths."""
    changed = {
        column: [None if pd.isna(value) else absolute_path(str(value), folder) for value in table[column]]
        for column in columns
        if column in table
    }
    return table.assign(**changed)


def check_rows(table: pd.DataFrame, mistakes: list[Mistake], *, own_names: bool = False) -> Found:
    """The rows that name existing files of a kind nnU-Net reads; everything wrong with the others as mistakes.

    With `own_names` the case names are the user's and must be unique; otherwise they are suggestions.
    """
    table = with_source_columns(table)
    reasons: list[list[str]] = [
        _reasons(row) for row in zip(*(table[c] for c in ("path", "volume", *MASKS)), strict=True)
    ]
    for position in table.index[table.duplicated(["path", "volume"]) & table["path"].notna()]:
        reasons[position].append(f"this image is listed before: {table.at[position, 'path']}")
    given = table["name"].notna() & own_names
    for position in table.index[given & table.duplicated("name")]:
        reasons[position].append(f"another row has the case name {table.at[position, 'name']}")
    for name, reason in bad_case_names(table.loc[given, "name"]):
        for position in table.index[given & (table["name"] == name)]:
            reasons[position].append(f"the case name {name!r} {reason}")
    mistakes = mistakes + [Mistake(table.at[i, "where"], reason) for i, of in enumerate(reasons) for reason in of]
    table = table[np.array([not of for of in reasons], dtype=bool)].reset_index(drop=True)
    names = table["name"].where(table["name"].notna(), pd.Series(suggest_names(table), dtype=object))
    table["name"] = names
    table["subject"] = table["subject"].where(table["subject"].notna(), table["name"])
    return Found(table, mistakes)


def suggest_names(table: pd.DataFrame) -> list[str]:
    """File names, led by subject and session unless they begin with them."""
    names = []
    columns = ("path", "volume", "subject", "session")
    for path, volume, subject, session in zip(*(table[c] for c in columns), strict=True):
        stem = basename(path)[: -len(ending_of(path) or "")]
        # What stands between underscores in the file's name need not be told again.
        said = f"_{stem}_"
        lead = [str(part) for part in (subject, session) if not pd.isna(part) and f"_{part}_" not in said]
        names.append("_".join([*lead, stem, *([] if pd.isna(volume) else [f"v{volume}"])]))
    return names


def _reasons(row: tuple[object, ...]) -> list[str]:
    path, volume, *masks = row
    if pd.isna(path):
        return ["the path is empty"]
    reasons = []
    missing = why_no_file(str(path))
    if missing:
        reasons.append(f"{path}: {missing}")
    elif not ending_of(str(path)) and not is_dicom(str(path)):
        reasons.append(f"{path}: pre-training reads {', '.join(ENDINGS)}")
    if not pd.isna(volume) and str(volume) != "mean" and not str(volume).isdigit():
        reasons.append(f'volume is {volume!r}, expected a number counted from 0, or "mean"')
    for column, mask in zip(MASKS, masks, strict=True):
        if not pd.isna(mask) and (absent := why_no_file(str(mask))):
            reasons.append(f"{column} {mask}: {absent}")
        elif not pd.isna(mask) and not ending_of(str(mask)):
            reasons.append(f"{column} {mask}: pre-training reads {', '.join(ENDINGS)}")
    return reasons


def _clean(table: pd.DataFrame, texts: Collection[str]) -> pd.DataFrame:
    known: Mapping[str, str] = {alias: name for name, others in ALIASES.items() for alias in (name, *others)}
    for column in table.columns:
        stripped = table[column].astype(str).str.strip()
        values = stripped.astype(object).where(~stripped.str.lower().isin(MISSING), None)
        if known.get(str(column).lower(), column) not in (*texts, "where") and values.notna().any():
            present = values[values.notna()].astype(str)
            if not present.str.match(r"[+-]?0\d").any() and pd.to_numeric(present, errors="coerce").notna().all():
                values = pd.to_numeric(values)
        table[column] = values
    return table
