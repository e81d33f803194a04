"""What is in a corpus: counts, shapes, spacings, intensities, duplicates, bad files, and what preprocessing will cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nnunet_ssl.corpus.check import MIN_VOXELS, shape_text
from nnunet_ssl.corpus.overview.samples import Sample
from nnunet_ssl.corpus.table import SHAPE, SPACING
from nnunet_ssl.quoting import cell as one_line

MAX_ROWS = 15
MAX_GROUPS, MAX_NAMED = 50, 5  # of duplicates, and cases of one of them
GIGABYTE = 1e9
BYTES_STORED = 4  # per voxel and channel, before compression; segmentations shrink to a few percent of that
# Measured with nnU-Net's resampling of a brain from 0.7 x 0.7 x 6.5 to 1 mm, which is its most expensive case.
BYTES_ORIGINAL, BYTES_RESAMPLED = 8, 64


@dataclass(frozen=True)
class Section:
    """A table of the overview, with a heading and a line that explains it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""


def overview(
    table: pd.DataFrame,
    samples: Sequence[Sample],
    duplicates: Sequence[Sequence[str]] | None,
    left_out: dict[str, str],
    num_processes: int,
) -> list[Section]:
    """All sections on a table with its bad images; `left_out` are the reasons of later steps by case."""
    good = table[table["problem"].isna()]
    parts = [
        _size(table, good),
        _counts(good, "modality", "Modalities"),
        _counts(good, "dataset", "Data sets"),
        _subjects(good),
        _shapes(good),
        _spacings(good),
        _intensities(good, samples),
        _costs(good, num_processes),
        _duplicates(good, duplicates),
        _bad(table, samples, left_out),
    ]
    return [part for part in parts if part is not None]


def as_text(sections: Sequence[Section]) -> str:
    """The sections for a terminal."""
    blocks = []
    for section in sections:
        cells = [[one_line(cell) for cell in row] for row in (section.header, *section.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(section.header))]
        lines = [
            "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in cells
        ]
        shown = [
            section.title,
            *(line.rstrip() for line in lines),
            *([f"  {section.caption}"] if section.caption else []),
        ]
        blocks.append("\n".join(shown))
    return "\n\n".join(blocks)


def _size(table: pd.DataFrame, good: pd.DataFrame) -> Section:
    people = (good["dataset"].fillna("") + "/" + good["subject"].fillna(good["case"])).nunique()
    rows = [
        ("images", f"{len(good):,}"),
        ("subjects", f"{people:,}"),
        ("bad files, left out", f"{len(table) - len(good):,}"),
        ("volumes of 4-D files", f"{int(good['volume'].notna().sum()):,}"),
        ("with an anatomy mask", f"{int(good['anatomy_mask'].notna().sum()):,}"),
        ("with an anonymisation mask", f"{int(good['anonymisation_mask'].notna().sum()):,}"),
        ("size of the files", _gigabytes(float(good.drop_duplicates("path")["bytes"].fillna(0).sum()))),
    ]
    return Section("Images", ("", "number"), rows)


def _counts(good: pd.DataFrame, column: str, title: str) -> Section | None:
    counts = good[column].astype(object).fillna("unknown").value_counts()
    rows = [(name, f"{count:,}", f"{100 * count / len(good):.1f} %") for name, count in counts.head(MAX_ROWS).items()]
    more = len(counts) - MAX_ROWS
    if more > 0:
        rows.append((f"{more} others", f"{int(counts.iloc[MAX_ROWS:].sum()):,}", ""))
    return Section(title, (column, "images", "share"), rows) if len(good) else None


def _subjects(good: pd.DataFrame) -> Section | None:
    if not len(good):
        return None
    per_subject = good.groupby([good["dataset"].fillna(""), good["subject"].fillna(good["case"])]).size()
    rows = [("images per subject", *(f"{v:g}" for v in per_subject.quantile([0, 0.25, 0.5, 0.75, 1])))]
    return Section("Subjects", ("", "fewest", "25 %", "median", "75 %", "most"), rows)


def _shapes(good: pd.DataFrame) -> Section | None:
    known = good[good["depth"].notna()]
    if not len(known):
        return None
    counts = known.groupby(list(SHAPE)).size().sort_values(ascending=False)
    rows = [(shape_text(shape), f"{count:,}") for shape, count in counts.head(MAX_ROWS).items()]
    caption = f"{len(counts)} different shapes [depth, height, width]." if len(counts) > MAX_ROWS else ""
    thin = int((known["slices"] < 8).sum())
    if thin:
        caption += f" {thin} images have fewer than 8 slices; to leave them out: slices >= 8."
    return Section("Shapes", ("voxels", "images"), rows, caption.strip())


def _spacings(good: pd.DataFrame) -> Section | None:
    known = good[good["thickness"].notna()]
    if not len(known):
        return None
    spacing = known[list(SPACING)].astype(float)
    rows = [
        (name, *(f"{v:.3g}" for v in spacing[column].quantile([0, 0.25, 0.5, 0.75, 1])))
        for name, column in zip(("depth", "height", "width"), SPACING, strict=True)
    ]
    orientations = known["orientation"].dropna().value_counts()
    shown = ", ".join(f"{name} {count:,}" for name, count in orientations.head(8).items())
    caption = f"Orientations in the headers: {shown}." if shown else ""
    return Section("Spacings in mm", ("axis", "smallest", "25 %", "median", "75 %", "largest"), rows, caption)


def _intensities(good: pd.DataFrame, samples: Sequence[Sample]) -> Section | None:
    read = [s for s in samples if s.problem is None]
    if not read:
        return None
    modality = dict(zip(good["case"], good["modality"].astype(object).fillna("unknown"), strict=True))
    values = pd.DataFrame(
        [(modality[s.case], s.lowest, s.percentile_1, s.percentile_99, s.highest) for s in read],
        columns=["modality", "lowest", "1 %", "99 %", "highest"],
    )
    rows = [
        (
            name,
            len(of),
            *(f"{v:.4g}" for v in (of["lowest"].min(), of["1 %"].median(), of["99 %"].median(), of["highest"].max())),
        )
        for name, of in values.groupby("modality")
    ]
    header = ("modality", "images read", "lowest", "1 % (median)", "99 % (median)", "highest")
    return Section("Intensities", header, rows, f"Of the first channel of {len(read)} images.")


def _costs(good: pd.DataFrame, num_processes: int) -> Section | None:
    known = good[good["depth"].notna()]
    if not len(known):
        return None
    original = known[list(SHAPE)].astype(float).prod(axis=1).to_numpy()
    channels = known["channels"].fillna(1).astype(float).to_numpy()
    spacing = known[list(SPACING)].astype(float)
    volume = spacing.prod(axis=1).to_numpy()
    median = float(spacing.median().prod())
    rows = []
    for style, voxels in (
        ("1 mm (onemmiso)", original * volume),
        ("median spacing (median)", original * volume / median),
        ("as they are (noresample)", original),
    ):
        voxels = np.maximum(voxels, MIN_VOXELS)
        disk = float((voxels * BYTES_STORED * channels).sum())
        memory = float(((original * BYTES_ORIGINAL + voxels * BYTES_RESAMPLED) * channels).max())
        rows.append((style, _gigabytes(disk), _gigabytes(memory), _gigabytes(memory * num_processes)))
    unknown = len(good) - len(known)
    caption = (
        "Disk: before compression, which saves a quarter or more, and before the air around the subject is cropped. Memory: "
        "about that for the largest image, beside 0.8 GB for the program"
        + (f"; {unknown} images of unknown shape are not counted." if unknown else ".")
    )
    return Section(
        "Preprocessing will need",
        ("spacing", "disk", "memory per process", f"{num_processes} process{'es' * (num_processes != 1)}"),
        rows,
        caption,
    )


def _duplicates(good: pd.DataFrame, duplicates: Sequence[Sequence[str]] | None) -> Section | None:
    if duplicates is None:
        return None
    cases = good.drop_duplicates("path").set_index("path")["case"].to_dict()
    rows: list[tuple[object, str]] = []
    for group in sorted(duplicates, key=len, reverse=True)[:MAX_GROUPS]:
        more = f", ... and {len(group) - MAX_NAMED} more" if len(group) > MAX_NAMED else ""
        rows.append((len(group), ", ".join(str(cases.get(path, path)) for path in group[:MAX_NAMED]) + more))
    surplus = sum(len(group) - 1 for group in duplicates)
    caption = f"{surplus} files repeat the content of others." if rows else "No two files have the same content."
    if len(duplicates) > MAX_GROUPS:
        caption += f" The {MAX_GROUPS} largest of {len(duplicates)} groups are shown."
    return Section("Duplicates", ("files", "cases"), rows, caption)


def _bad(table: pd.DataFrame, samples: Sequence[Sample], left_out: dict[str, str]) -> Section:
    bad = table[table["problem"].notna()]
    rows = [(path, reason, "import") for path, reason in zip(bad["path"], bad["problem"], strict=True)]
    rows += [(s.case, s.problem, "this look") for s in samples if s.problem is not None]
    rows += [(case, reason, "preprocessing") for case, reason in sorted(left_out.items())]
    caption = "" if rows else "None found" + ("." if samples else "; no image was opened.")
    return Section("Bad files", ("file or case", "reason", "found by"), rows, caption)


def _gigabytes(size: float) -> str:
    return f"{size / GIGABYTE:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"
