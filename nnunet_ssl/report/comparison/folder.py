"""The folder of a comparison as it stands: what was asked for, which cells there are, and their scores."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from nnunet_ssl.errors import BadFile
from nnunet_ssl.files.entering import read_json

DESCRIPTION, CELL, SCORES, CELLS, DATASETS = "comparison.json", "cell.json", "scores.csv", "cells", "datasets"
KEYS = ["dataset", "arm", "fold", "seed", "labelled"]
COLUMNS = [*KEYS, "case", "structure", "metric", "value"]
FINISHED, FAILED, RUNNING, MISSING = "finished", "failed", "running", "not begun"
SCRATCH = "scratch"


class Key(NamedTuple):
    """Which cell: all texts, for a fold may be "all", and so may the number of labelled cases."""

    dataset: str
    arm: str
    fold: str
    seed: str
    labelled: str

    def folder(self) -> Path:
        """Where the cell lies, relative to the comparison."""
        name = f"labelled_{self.labelled}"
        return Path(CELLS, self.dataset, self.arm, name, f"fold_{self.fold}", f"seed_{self.seed}")

    def words(self) -> str:
        """The cell in words."""
        number = "all" if self.labelled == "all" else self.labelled
        return f"{self.dataset}, {self.arm}, {number} labelled, fold {self.fold}, seed {self.seed}"


@dataclass(frozen=True)
class Cell:
    """One training of one arm, and what it noted; `error`: why it has no scores, in a line."""

    key: Key
    folder: Path
    state: str
    error: str | None = None
    noted: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A comparison's description, its cells in the description's order, and the scores of the finished ones.

    scores: COLUMNS, keys as texts; value NaN where it is undefined. reference: the arm that others are compared with.
    others: cells in the folder that the description does not ask for; they count nowhere.
    """

    folder: Path
    description: Mapping[str, Any]
    cells: list[Cell]
    scores: pd.DataFrame
    others: list[Key]

    @property
    def datasets(self) -> list[str]:
        return [entry["dataset"] for entry in self.description["datasets"]]

    @property
    def arms(self) -> list[str]:
        return [entry["name"] for entry in self.description["arms"]]

    @property
    def metrics(self) -> list[str]:
        return [str(name) for name in self.description.get("metrics") or ["Dice"]]

    @property
    def labelled(self) -> list[str]:
        """Numbers of labelled cases from few to all, as texts."""
        return sorted({str(n) for n in self.description.get("labelled") or ["all"]}, key=number_of)

    @property
    def reference(self) -> str:
        without = [entry["name"] for entry in self.description["arms"] if not entry.get("weights")]
        return SCRATCH if SCRATCH in without else (without or self.arms)[0]

    @property
    def pretrained(self) -> list[str]:
        """Arms that start from weights."""
        return [entry["name"] for entry in self.description["arms"] if entry.get("weights")]

    def finished(self) -> list[Cell]:
        """The cells that have scores."""
        return [cell for cell in self.cells if cell.state == FINISHED]


def number_of(labelled: str) -> float:
    """For sorting numbers of labelled cases; "all" is the largest."""
    return float(labelled) if labelled.isdecimal() else float("inf")


def prepared(comparison: Comparison, dataset: str) -> dict[str, Any]:
    """What was noted of a data set when it was prepared: its plans by arm, where its images lie; empty where nothing was."""
    try:
        noted = read_json(comparison.folder / DATASETS / f"{dataset}.json")
    except BadFile:
        return {}
    return noted if isinstance(noted, dict) else {}


def short(dataset: str) -> str:
    """A data set's name for a narrow column: 004 Hippocampus for Dataset004_Hippocampus."""
    return dataset.removeprefix("Dataset").replace("_", " ", 1)


def read_comparison(folder: Path) -> Comparison:
    """What a folder holds; raises BadFile where its description cannot be read, notes on its cell what else cannot."""
    description = _description(folder / DESCRIPTION)
    cells, tables = [], []
    together = _read_scores(folder / SCORES)
    keys = list(_keys(description))
    for key in keys:
        cell, table = _read_cell(folder, key, together)
        cells.append(cell)
        if table is not None:
            tables.append(table)
    scores = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)
    wanted = {key.folder() for key in keys}
    found = sorted(path.parent.relative_to(folder) for path in folder.glob(f"{CELLS}/*/*/*/*/*/{CELL}"))
    return Comparison(folder, description, cells, scores, [_key_of(path) for path in found if path not in wanted])


def _description(file: Path) -> dict[str, Any]:
    content = read_json(file)
    expected = '{"datasets": [{"dataset": ...}], "arms": [{"name": ...}], ...}'
    if not isinstance(content, dict) or not content.get("datasets") or not content.get("arms"):
        raise BadFile(f"{file} describes no comparison. Expected {expected}", path=file)
    for entries, name in ((content["datasets"], "dataset"), (content["arms"], "name")):
        if not all(isinstance(entry, dict) and isinstance(entry.get(name), str) for entry in entries):
            raise BadFile(f"{file} describes no comparison. Expected {expected}", path=file)
    return content


def _keys(description: Mapping[str, Any]) -> Iterator[Key]:
    names = [entry["dataset"] for entry in description["datasets"]]
    arms = [entry["name"] for entry in description["arms"]]
    numbers = sorted({str(n) for n in description.get("labelled") or ["all"]}, key=number_of)
    folds, seeds = ([str(n) for n in description.get(what) or [0]] for what in ("folds", "seeds"))
    for dataset, number, arm, fold, seed in itertools.product(names, numbers, arms, folds, seeds):
        yield Key(dataset, arm, fold, seed, number)


def _read_cell(folder: Path, key: Key, together: Mapping[Key, pd.DataFrame]) -> tuple[Cell, pd.DataFrame | None]:
    """A cell, and its scores where it has finished: from its own folder, or else from the table of all."""
    place = folder / key.folder()
    noted: Any = {}
    if (place / CELL).is_file():
        try:
            noted = read_json(place / CELL)
        except BadFile as error:
            return Cell(key, place, FAILED, str(error)), None
        noted = noted if isinstance(noted, dict) else {}
        state = noted.get("state")
        if state != FINISHED:
            reason = noted.get("error") if state == FAILED else None
            return Cell(key, place, state if state in (FAILED, RUNNING) else MISSING, reason, noted), None
    table = _read_scores(place / SCORES).get(key) if noted else None
    table = together.get(key) if table is None else table
    if table is None:
        if not noted:
            return Cell(key, place, MISSING), None
        return Cell(key, place, FAILED, f"finished, but {SCORES} holds none of its scores", noted), None
    return Cell(key, place, FINISHED, None, noted), table


def _read_scores(file: Path) -> dict[Key, pd.DataFrame]:
    """The rows of every cell in a file, all but value as texts (a case may be called NA); nothing where it is no table."""
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (ValueError, OSError):
        return {}
    if not set(COLUMNS) <= set(table.columns):
        return {}
    table = table[COLUMNS].assign(value=pd.to_numeric(table["value"], errors="coerce"))
    return {Key(*key): rows for key, rows in table.groupby(KEYS, sort=False)}


def _key_of(path: Path) -> Key:
    _, dataset, arm, labelled, fold, seed = path.parts
    return Key(dataset, arm, fold.removeprefix("fold_"), seed.removeprefix("seed_"), labelled.removeprefix("labelled_"))
