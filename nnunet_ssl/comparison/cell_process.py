"""The process of one cell: `python -m nnunet_ssl.comparison.cell_process FOLDER NUMBER DEVICE NUM_GPUS`.

Started by `work`, with nnU-Net's folders set to the cell's own. It saves and ends when the one that started it has died.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunet_ssl.cli.errors import REPORT
from nnunet_ssl.comparison.cells import (
    FAILED,
    FINISHED,
    LOCK,
    PREDICTIONS,
    RECORD,
    RUNNING,
    SCORES,
    TRAINING,
    Cell,
    cells_of,
    settings_of,
)
from nnunet_ssl.comparison.description import Description, read_description
from nnunet_ssl.errors import BadFile
from nnunet_ssl.files.atomic import copy_file, write_json
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.files.locks import Lock
from nnunet_ssl.messages import one_line_of_ours
from nnunet_ssl.signals import Stopped, stopping_on_signals

LOOK = 1.0  # seconds between two looks at whether the parent lives
PACKAGES = ("nnunet_ssl", "nnunetv2", "torch", "dynamic_network_architectures", "numpy", "scipy")


def run_cell(cell: Cell, description: Description, comparison: Path, device: str, num_gpus: int) -> None:
    """Train, evaluate and record a cell. That cell.json says "finished" is written last; then what is not kept is dropped."""
    from nnunet_ssl.comparison import training
    from nnunet_ssl.comparison.evaluation import scores_of, write_scores
    from nnunet_ssl.comparison.preparing import read_prepared

    folder, prepared = cell.folder(comparison), read_prepared(cell.entry.dataset, comparison)
    plans = training.write_workspace(cell, prepared, description, folder)
    job = training.job_of(cell, plans, device)
    record = {
        **cell.key,
        "state": RUNNING,
        "error": None,
        "trainer": cell.arm.trainer,
        "plans": plans["plans_name"],
        "initial_lr": None,
        "num_epochs": None,
        "training_cases": prepared.training_cases(cell.labelled, cell.fold, cell.seed),
        "test_cases": sorted(prepared.splits[cell.fold]["val"]),
        "seconds": {},
        "commands": training.commands_of(cell, job, comparison),
        "versions": {name: version(name) for name in PACKAGES},
        "transfer": None,
        "curve": {},
        "warnings": [*prepared.warnings.get(cell.arm.name, []), *training.warnings_about(cell.arm.trainer)],
        "settings": settings_of(description, cell),
    }
    write_json(record, folder / RECORD)
    begun = time.time()
    training.train_cell(cell, job, description, num_gpus)
    record.update(what_was_trained(Path(job.folder(str(cell.fold))), begun))
    record["initial_lr"] = training.highest_lr(job, plans, record.pop("lrs"))
    clock = time.monotonic()
    validation = training.validation_folder(job, cell.fold)
    rows = scores_of(
        validation, prepared.truth, plans, prepared.dataset_json, description.metrics, description.tolerance_mm
    )
    write_scores(({**cell.key, **row} for row in rows), folder / SCORES)
    if description.keep != "scores":
        (folder / PREDICTIONS).mkdir(exist_ok=True)
        ending = prepared.dataset_json["file_ending"]
        for file in sorted(validation.glob(f"*{ending}")):
            copy_file(file, folder / PREDICTIONS / file.name)
    record["seconds"]["evaluation"] = time.monotonic() - clock
    write_json({**record, "state": FINISHED}, folder / RECORD)
    drop_training(cell, description, comparison)


def drop_training(cell: Cell, description: Description, comparison: Path) -> None:
    """Remove nnU-Net's results of a finished cell, unless models are kept. What the cell began with is small and stays."""
    if description.keep != "models":
        shutil.rmtree(cell.folder(comparison) / TRAINING / "results", ignore_errors=True)


def what_was_trained(folder: Path, begun: float) -> dict[str, Any]:
    """Epochs, curves, seconds and what was transferred, from nnU-Net's result folder. begun: when this process did [s]."""
    from nnunet_ssl.checkpoints.read import read_checkpoint

    final = folder / "checkpoint_final.pth"
    checkpoint = read_checkpoint(final)
    logged = checkpoint["logging"]
    curves = {"train_losses": "train_losses", "val_losses": "val_losses", "pseudo_dice": "mean_fg_dice"}
    epochs = zip(logged.get("epoch_start_timestamps", ()), logged.get("epoch_end_timestamps", ()), strict=False)
    transfer = folder / "pretrained_weights.json"
    return {
        "num_epochs": int(checkpoint["current_epoch"]),
        "lrs": [float(lr) for lr in logged.get("lrs", ())],
        "curve": {name: [float(v) for v in logged.get(key, ())] for name, key in curves.items()},
        "seconds": {
            "training": sum(float(end) - float(start) for start, end in epochs),
            "prediction": time.time() - max(begun, final.stat().st_mtime),
        },
        "transfer": read_json(transfer) if transfer.is_file() else None,
    }


def record_failure(cell: Cell, comparison: Path, error: str) -> None:
    """Write down why a cell failed; what it has trained stays for the next try."""
    folder = cell.folder(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        record = cell.record(comparison)
    except BadFile:
        record = {}
    write_json({**cell.key, **record, "state": FAILED, "error": error}, folder / RECORD)


def save_when_alone(parent: int) -> None:
    """Have this process save and end when `parent`, which started it, is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str]) -> int:
    """Exit code 0 when the cell is finished, 1 when it failed, 128 + the signal's number when it was stopped."""
    comparison, number, device, num_gpus = Path(argv[0]), int(argv[1]), argv[2], int(argv[3])
    save_when_alone(os.getppid())
    description = read_description(comparison)
    if description is None:
        raise BadFile(f"There is no comparison in {comparison}.")
    cell = cells_of(description)[number]
    folder = cell.folder(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # One that an earlier process has left behind may still be saving.
        with stopping_on_signals(), Lock(folder / LOCK, f"training {cell.name}").waiting():
            if cell.state(comparison) != FINISHED:
                run_cell(cell, description, comparison, device, num_gpus)
    except Stopped as stopped:
        return 128 + stopped.number
    except Exception as error:
        message = one_line_of_ours(error)
        if message is None:
            import traceback

            traceback.print_exc()
            message = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}. {REPORT}"
        print(message, file=sys.stderr)
        record_failure(cell, comparison, " ".join(message.split()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
