"""What a comparison is going to do: cells and commands, how long it may take and how much it may fill. Nothing is written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from nnunet_ssl.comparison.cells import FINISHED, Cell
from nnunet_ssl.comparison.description import STOCK, Arm, Description
from nnunet_ssl.comparison.overview import counts, state_now
from nnunet_ssl.corpus.dataset_names import dataset_id
from nnunet_ssl.corpus.datasets import require_raw
from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.planners.folds import FOLDS

FLOAT = 4  # bytes
STATES = 3  # numbers that a checkpoint holds per parameter: the weight and what AdamW keeps of it
CHECKPOINTS = 2  # of a finished training: final and best
LONG = {"epochs": 1000, "iterations_per_epoch": 250}  # of a training whose length nobody set


def expectation(description: Description, cells: Sequence[Cell], comparison: Path, device: str) -> str:
    """Cells, a command for each, an estimate of time and disk. Raises CorpusError and CheckpointError for what is not there."""
    states = {cell: state_now(cell, comparison) for cell in cells}
    lines = [f"{cell.number}: {states[cell]}, {cell}\n   {shlex.join(command(cell, device))}" for cell in cells]
    return "\n".join(
        [
            *lines,
            "PLANS are those that the first start makes, with the schedule and the seed of the cell.",
            "",
            counts(states.values()),
            length(description, len(cells)),
            time_left(cells, comparison),
            disk(description, cells),
        ]
    )


def command(cell: Cell, device: str) -> list[str]:
    """What a cell comes to, in nnU-Net's words."""
    number, plans = str(dataset_id(cell.entry.dataset)), cell.arm.plans or "PLANS"
    argv = ["nnUNetv2_train", number, cell.entry.configuration, str(cell.fold), "-tr", cell.arm.trainer, "-p", plans]
    argv += ["-pretrained_weights", cell.arm.weights] if cell.arm.weights else []
    return argv + (["-device", device] if device != "cuda" else [])


def length(description: Description, number: int) -> str:
    """How many iterations that is."""
    epochs = description.epochs or LONG["epochs"]
    iterations = description.iterations_per_epoch or LONG["iterations_per_epoch"]
    return f"Iterations: {number} x {epochs} epochs x {iterations} = {number * epochs * iterations:,}."


def time_left(cells: Sequence[Cell], comparison: Path) -> str:
    """Hours for the cells that are not finished, from those that are: of the same data set, where there is one."""
    took: dict[str, list[float]] = {}
    for cell in cells:
        record = cell.record(comparison)
        if record.get("state") == FINISHED:
            took.setdefault(cell.entry.dataset, []).append(sum(record["seconds"].values()))
    left = [cell for cell in cells if cell.state(comparison) != FINISHED]
    if not left:
        return "Time: all cells are finished."
    if not took:
        return (
            "Time: known when a cell has run. Try the first one: the same command with --run 0, then --dry-run again."
        )
    everywhere = [seconds for part in took.values() for seconds in part]
    seconds = sum(fmean(took.get(cell.entry.dataset, everywhere)) for cell in left)
    return f"Time: about {seconds / 3600:.2g} hours for the {len(left)} cells that are left, one after the other on this machine."


def disk(description: Description, cells: Sequence[Cell]) -> str:
    """What stays, and what a running cell needs besides."""
    sizes = {arm.name: parameters(arm, description) * FLOAT * STATES for arm in description.arms}
    running = max(sizes.values()) * (CHECKPOINTS + 1)
    models = sum(sizes[cell.arm.name] for cell in cells) * CHECKPOINTS if description.keep == "models" else 0
    labels = {entry.dataset: label_bytes(entry.dataset) for entry in description.datasets}
    predictions = sum(labels[cell.entry.dataset] / FOLDS for cell in cells) if description.keep != "scores" else 0
    return (
        f"Disk: about {_size(models + predictions)} stay (--keep {description.keep}), {_size(running)} more while a cell runs. "
        "Preprocessed images come on top, once per data set."
    )


def parameters(arm: Arm, description: Description) -> int:
    """Of the network that an arm trains: as many as the checkpoint has whose plans it uses; nnU-Net's own has 31 million."""
    from nnunet_ssl.checkpoints.canonical import canonical_weights
    from nnunet_ssl.checkpoints.hub.resolve import resolve_source
    from nnunet_ssl.checkpoints.read import read_checkpoint

    with_weights = {a.name: a.weights for a in description.arms if a.weights is not None}
    weights = arm.weights or with_weights.get(arm.like or "", next(iter(with_weights.values()), None))
    if weights is None or arm.trainer == STOCK:
        return 31_000_000
    tensors = canonical_weights(read_checkpoint(resolve_source(weights).path))[0]
    return sum(tensor.numel() for tensor in tensors.values())


def label_bytes(dataset: str) -> int:
    """The size of a data set's label files."""
    folder = require_raw(dataset, "estimating the room for predictions")
    cases = list_images(folder, read_dataset_json(folder)).values()
    return sum(os.path.getsize(files["label"]) for files in cases if files["label"] is not None)


def _size(number: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
