"""Training steps that were measured on GPUs: gpu_times.csv, the one home of these figures.

A row is a median over steps of a training whose data were ready: milliseconds per step of one GPU, `batch` images of `patch`
voxels per axis, and the most that tensors took (`allocated_gib`) and torch held for them (`reserved_gib`). `make docs` brings
new rows into the documents.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from nnunet_ssl.corpus.overview.sections import Section

VALIDATION_SHARE = 1 / 3  # of a training step: the forward pass alone; not measured


@dataclass(frozen=True)
class GpuTime:
    """One row of the table."""

    method: str
    backbone: str
    patch: int
    batch: int
    card: str
    precision: str
    compiled: bool
    recompute: bool
    ms: float
    allocated_gib: float
    reserved_gib: float
    torch: str
    nnunetv2: str

    def hours(self, epochs: int = 1000, iterations: int = 250, validation: int = 50) -> float:
        """GPU hours of a run of so many epochs, with so many training and validation iterations each."""
        return epochs * (iterations + VALIDATION_SHARE * validation) * self.ms / 3.6e6

    @property
    def how(self) -> str:
        """What else was set."""
        return f"{self.precision}, {'' if self.compiled else 'not '}compiled{', recomputing' * self.recompute}"


def gpu_times() -> list[GpuTime]:
    """All rows."""
    text = files("nnunet_ssl.report").joinpath("gpu_times.csv").read_text()
    return [_row(row) for row in csv.DictReader(text.splitlines())]


def _row(row: dict[str, str]) -> GpuTime:
    flags = {name: {"yes": True, "no": False}[row[name]] for name in ("compiled", "recompute")}
    numbers = {name: float(row[name]) for name in ("ms", "allocated_gib", "reserved_gib")}
    texts = {name: row[name] for name in ("method", "backbone", "card", "precision", "torch", "nnunetv2")}
    return GpuTime(patch=int(row["patch"]), batch=int(row["batch"]), **flags, **numbers, **texts)  # type: ignore[arg-type]


def times_section(
    method: str, backbone: str | None, patch_size: Sequence[int], epochs: int, iterations: int, validation: int
) -> Section:
    """What was measured for a method and a backbone (None: other plans), as hours of a run of this length."""
    found = [time for time in gpu_times() if (time.method, time.backbone) == (method, backbone)]
    rows = [
        (t.card, str(t.batch), t.how, f"{t.ms:.1f}", f"{t.hours(epochs, iterations, validation):.3g}") for t in found
    ]
    network = backbone or "these plans' network"
    caption = (
        f"{epochs:,} x {iterations:,} iterations; a validation iteration ({validation}) is taken as a third of one."
    )
    others = {t.patch for t in found if tuple(patch_size) != (t.patch,) * len(patch_size)}
    if others:
        caption += f" Measured with patches of {' and '.join(f'{p}^3' for p in sorted(others))}, not those of this run."
    if not found:
        rows, caption = [("not measured", "", "", "", "")], f"Nobody has measured {method} with {network} on a GPU yet."
    header = ("GPU", "batch", "how", "ms per step", "GPU hours")
    return Section("Time, from the table of what was measured on GPUs", header, rows, caption)
