"""The cells of a comparison: one training, its predictions and scores each; where they lie, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from nnunet_ssl.comparison.description import Arm, DatasetEntry, Description
from nnunet_ssl.errors import BadFile
from nnunet_ssl.files.entering import read_json

CELLS, RECORD, SCORES, PREDICTIONS, TRAINING, LOG = (
    "cells", "cell.json", "scores.csv", "predictions", "training", "log.txt",
)  # fmt: skip
LOCK = "running.lock"  # in a cell's folder, held by the process that trains it
FINISHED, FAILED, RUNNING, WAITING = "finished", "failed", "running", "waiting"


@dataclass(frozen=True)
class Cell:
    """Its `number` is its place in `cells_of`, which --run takes."""

    number: int
    entry: DatasetEntry
    arm: Arm
    labelled: int | str
    fold: int
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """What tells it from others, as in cell.json and scores.csv."""
        return {
            "dataset": self.entry.dataset,
            "arm": self.arm.name,
            "fold": self.fold,
            "seed": self.seed,
            "labelled": self.labelled,
        }

    @property
    def name(self) -> str:
        """One word, for claims."""
        return f"{self.entry.dataset}-{self.arm.name}-labelled_{self.labelled}-fold_{self.fold}-seed_{self.seed}"

    def __str__(self) -> str:
        return f"{self.entry.dataset}, {self.arm.name}, labelled {self.labelled}, fold {self.fold}, seed {self.seed}"

    def folder(self, comparison: Path) -> Path:
        """Where everything of it lies."""
        parts = (
            self.entry.dataset,
            self.arm.name,
            f"labelled_{self.labelled}",
            f"fold_{self.fold}",
            f"seed_{self.seed}",
        )
        return comparison.joinpath(CELLS, *parts)

    def record(self, comparison: Path) -> dict[str, Any]:
        """cell.json, empty where there is none yet. Raises BadFile for one that is damaged."""
        path = self.folder(comparison) / RECORD
        if not path.exists():
            return {}
        content = read_json(path)
        if not isinstance(content, dict):
            raise BadFile(f"{path}: must be a JSON object. Remove it to have the cell evaluated again", path=path)
        return content

    def state(self, comparison: Path) -> str:
        """Its state by cell.json; whether somebody works on it now, that file cannot tell."""
        return str(self.record(comparison).get("state", WAITING))


def cells_of(description: Description, datasets: Iterable[str] | None = None) -> list[Cell]:
    """All cells, in the order in which they are worked on: arms beside each other, so that pairs are complete early.

    datasets: only theirs; the numbers stay.
    """
    grid = product(description.datasets, description.folds, description.seeds, description.labelled, description.arms)
    cells = [
        Cell(number, entry, arm, labelled, fold, seed) for number, (entry, fold, seed, labelled, arm) in enumerate(grid)
    ]
    wanted = None if datasets is None else set(datasets)
    return [cell for cell in cells if wanted is None or cell.entry.dataset in wanted]


def settings_of(description: Description, cell: Cell) -> dict[str, Any]:
    """What a cell's result depends on; a finished cell that says otherwise was made for another comparison."""
    arm, content = cell.arm, description.to_json()
    keys = ("epochs", "iterations_per_epoch", "batch_size", "metrics", "tolerance_mm")
    return {
        "weights": arm.weights,
        "trainer": arm.trainer,
        "plans": arm.plans,
        "like": arm.like,
        "adapt": arm.adapt,
        "configuration": cell.entry.configuration,
        **{key: content[key] for key in keys},
    }
