"""From sources to a registered data set: collect, read headers, check, unroll series, filter, register."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nnunet_ssl.corpus.filters import matching
from nnunet_ssl.corpus.hounsfield import name_cts
from nnunet_ssl.corpus.label_maps import find_label_maps
from nnunet_ssl.corpus.label_values import require_labels
from nnunet_ssl.corpus.overview.describe import add_files, add_headers, compare_masks, unroll_series
from nnunet_ssl.corpus.overview.duplicates import find_duplicates
from nnunet_ssl.corpus.register import Registered, known_images, register, unchanged
from nnunet_ssl.corpus.sources.found import MAX_SHOWN, Mistake
from nnunet_ssl.corpus.sources.kinds import SourceOptions, collect
from nnunet_ssl.corpus.table import HEADER_COLUMNS, typed
from nnunet_ssl.errors import CorpusError


@dataclass(frozen=True)
class ImportOptions:
    """What the flags of nnUNetv2_pretrain_import say."""

    source: SourceOptions
    channels: list[str] | None = None
    series: str = "first"
    expression: str | None = None
    headers: bool = True
    strict: bool = False
    lenient: bool = False
    prune: bool = False
    not_label_maps: bool = False
    drop_duplicates: bool = False
    with_labels: bool = False
    num_threads: int = 8


@dataclass
class Imported:
    """What an import did, and what a person should know about it."""

    registered: Registered
    mistakes: list[Mistake]
    notes: list[str]


def import_corpus(sources: Sequence[str], folder: str, options: ImportOptions, show_progress: bool = True) -> Imported:
    """Register the images of all sources in the data set's folder in nnUNet_raw; nothing is written before all is checked.

    Raises CorpusError with every mistake in the sources, unless `lenient`: then the rows with mistakes are left out.
    """
    known = known_images(folder)
    found = collect(sources, options.source)
    table, mistakes, notes = found.table, list(found.mistakes), list(found.notes)
    table["channels"] = [len(images) if isinstance(images, list) else 1 for images in table["images"]]
    if options.headers:
        table = _with_headers(table, known, options.num_threads, show_progress)
        unfit = _unfit_masks(table, options.num_threads)
        mistakes += [Mistake(_where(table, row), reason) for row, reason in unfit]
        table = table.drop(index={row for row, _ in unfit}).reset_index(drop=True)
        if not options.not_label_maps:
            table, note = _without_label_maps(table, known, options.num_threads)
            notes += note
        if options.channels is None:
            table, note = name_cts(table, options.num_threads)
            notes += note
    else:
        table = add_files(table, options.num_threads)
    if mistakes and not options.lenient:
        raise CorpusError(describe_mistakes(mistakes))
    if options.strict and table.get("problem", pd.Series(dtype=object)).notna().any():
        bad = table[table["problem"].notna()]
        raise CorpusError(describe_mistakes([Mistake(p, r) for p, r in zip(bad["path"], bad["problem"], strict=True)]))
    columns = table[["name", "images"]]
    table = pd.concat(
        [columns, typed(table.drop(columns=["case", "name", "images", "where"], errors="ignore"))], axis=1
    )
    table, num_series = unroll_series(table, options.series)
    if num_series:
        notes.append(
            f"{num_series} files are 4-D series; {_taken(options.series)}. Another choice: --series first, mean or all."
        )
    if options.drop_duplicates:
        table, note = _without_duplicates(table, options.num_threads)
        notes += note
    if options.expression:
        before = len(table)
        table = table[matching(table, options.expression)].reset_index(drop=True)
        notes.append(f"{len(table)} of {before} images match the filter {options.expression}")
    if not len(table):
        lines = "".join(f"\n  {mistake}" for mistake in mistakes[:MAX_SHOWN])
        raise CorpusError(f"No image is left to register{':' if lines else '.'}{lines}")
    table["modality"] = table["modality"].astype(object)
    notes += _about_modalities(table, options.channels)
    labels = require_labels(table, options.num_threads) if options.with_labels else None
    if labels and table[["anatomy_mask", "anonymisation_mask"]].notna().any(axis=None):
        raise CorpusError(
            "--with-labels: the images have masks, which take the labels' place. Import without the flag."
        )
    done = register(table, known, folder, options.channels, prune=options.prune, labels=labels)
    return Imported(done, mistakes, notes)


def _without_label_maps(table: pd.DataFrame, known: pd.DataFrame, num_threads: int) -> tuple[pd.DataFrame, list[str]]:
    """The table without images that look like label maps, and what is said about them; what is registered stays so."""
    unknown = np.flatnonzero(~table["path"].isin(set(known["path"])).to_numpy())
    rows = [int(unknown[row]) for row in find_label_maps(table.iloc[unknown], num_threads)]
    if not rows:
        return table, []
    shown = ", ".join(table["path"].iloc[rows[:3]])
    note = (
        f"{len(rows)} of {len(table)} images look like label maps (few whole numbers in large pieces, no noise) and are left "
        f"alone: {shown}{', ...' if len(rows) > 3 else ''}. If they are images: --not-label-maps"
    )
    return table.drop(index=table.index[rows]).reset_index(drop=True), [note]


def _without_duplicates(table: pd.DataFrame, num_threads: int) -> tuple[pd.DataFrame, list[str]]:
    """The table with the first, in alphabetical order, of images with the same content, and what is said about it."""
    groups = find_duplicates(table["path"].dropna().astype(str).tolist(), num_threads)
    extra = {path: group[0] for group in map(sorted, groups) for path in group[1:]}
    if not extra:
        return table, ["No two files have the same content."]
    again, first = next(iter(extra.items()))
    note = f"{len(extra)} files repeat the content of others and are dropped, e.g. {again}, which is {first}."
    return table[~table["path"].isin(list(extra))].reset_index(drop=True), [note]


def describe_mistakes(mistakes: Sequence[Mistake]) -> str:
    """Every mistake on a line of its own."""
    lines = [f"  {mistake}" for mistake in mistakes[:MAX_SHOWN]]
    if len(mistakes) > MAX_SHOWN:
        lines.append(f"  ... and {len(mistakes) - MAX_SHOWN} more")
    return (
        f"{len(mistakes)} mistakes in the source; nothing is registered:\n" + "\n".join(lines) + "\n"
        "Correct them and type the same command again, or leave those images out: --lenient"
    )


def _with_headers(table: pd.DataFrame, known: pd.DataFrame, num_threads: int, show_progress: bool) -> pd.DataFrame:
    """The table with header columns: from the stored table where the file has not changed, from the files otherwise."""
    table = add_files(table.drop(columns=[c for c in HEADER_COLUMNS if c in table]), num_threads)
    same = unchanged(table, known)
    stored = known.drop_duplicates("path").set_index("path")[[*HEADER_COLUMNS, "problem"]]
    # Registered without headers: those are read now.
    same &= (stored["depth"].notna() | stored["problem"].notna()).reindex(table["path"], fill_value=False).to_numpy()
    fresh = add_headers(table[~same].reset_index(drop=True), num_threads, show_progress)
    old = table[same].reset_index(drop=True)
    old = pd.concat([old, stored.reindex(old["path"]).reset_index(drop=True)], axis=1)
    joined = pd.concat([fresh.astype(object), old.astype(object)], ignore_index=True)
    order = [*table.index[~same], *table.index[same]]
    return joined.set_axis(order).sort_index()


def _unfit_masks(table: pd.DataFrame, num_threads: int) -> list[tuple[int, str]]:
    return [
        pair
        for column in ("anatomy_mask", "anonymisation_mask")
        for pair in compare_masks(table, column, num_threads).items()
    ]


def _where(table: pd.DataFrame, row: int) -> str:
    where, path = table["where"].iloc[row], table["path"].iloc[row]
    return str(path) if pd.isna(where) else f"{where} ({path})"


def _taken(series: str) -> str:
    taken = {"first": "the first volume of each is taken", "mean": "the mean of each is taken"}
    return taken.get(series, "every volume is an image of its own")


def _about_modalities(table: pd.DataFrame, channels: list[str] | None) -> list[str]:
    modalities = table["modality"].dropna().astype(str).str.upper()
    num_ct = int((modalities == "CT").sum())
    if channels is None and 0 < num_ct < len(table):
        return [
            f"{num_ct} of {len(table)} images are CTs, the others are not. nnU-Net normalises all images of a data set alike: "
            "import the CTs as a data set of their own (--filter 'modality == \"CT\"') and pre-train on both: "
            "nnUNetv2_pretrain ID ID"
        ]
    return []
