"""Work through the cells of a comparison, together with whoever else does so: each cell is one process' at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ssl.comparison.cell_process import drop_training, record_failure
from nnunet_ssl.comparison.cells import FAILED, FINISHED, LOG, RECORD, Cell, settings_of
from nnunet_ssl.comparison.description import Description
from nnunet_ssl.comparison.preparing import prepare
from nnunet_ssl.comparison.training import environment
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.files.participants import Participant
from nnunet_ssl.signals import SIGNALS, Stopped

STATE = "state"  # folder of claims, inside the comparison's
STOPPED = {128 + number for number in SIGNALS} | {-number for number in SIGNALS}


@dataclass(frozen=True)
class Outcome:
    """What became of the cells that this process was asked for; others: those that another process works on."""

    finished: list[Cell]
    failed: list[Cell]
    others: list[Cell]


@dataclass(frozen=True)
class How:
    """What a process needs to know besides the description."""

    device: str
    num_gpus: int
    num_processes: int


def work(comparison: Path, description: Description, cells: Sequence[Cell], how: How) -> Outcome:
    """Run the cells that are not finished, until each is finished, has failed, or is another process'.

    A cell that failed before is tried once more. Raises SettingsError where a finished cell was made with other settings.
    """
    require_same_settings(comparison, description, cells)
    todo = [cell for cell in cells if cell.state(comparison) != FINISHED]
    for cell in cells:
        if cell not in todo:
            drop_training(cell, description, comparison)  # where a kill came first
    for entry in dict.fromkeys(cell.entry for cell in todo):
        prepare(entry, description, comparison, how.num_processes)
    tried: set[Cell] = set()
    failed_before = {cell: _stamp(cell, comparison) for cell in todo if cell.state(comparison) == FAILED}

    def settled(cell: Cell) -> bool:
        state = cell.state(comparison)
        return state == FINISHED or (state == FAILED and failed_before.get(cell) != _stamp(cell, comparison))

    (comparison / STATE).mkdir(parents=True, exist_ok=True)
    with Participant(str(comparison / STATE), "comparing") as participant:
        progress = True
        while progress:
            progress = False
            for cell in todo:
                if cell in tried or settled(cell) or participant.claim(cell.name) is None:
                    continue
                try:
                    if not settled(cell):
                        tried.add(cell)
                        run_in_process(cell, comparison, how, f"[cell {cell.number}, {len(todo)} to do]")
                        progress = True
                finally:
                    participant.release(cell.name)
    states = {cell: cell.state(comparison) for cell in cells}
    return Outcome(
        [cell for cell in cells if states[cell] == FINISHED],
        [cell for cell in cells if states[cell] == FAILED and (cell in tried or settled(cell))],
        [cell for cell in cells if not (cell in tried or settled(cell))],
    )


def require_same_settings(comparison: Path, description: Description, cells: Sequence[Cell]) -> None:
    """Raise SettingsError where finished cells were made with other settings than the description has now."""
    other = []
    for cell in cells:
        record = cell.record(comparison)
        if record.get("state") == FINISHED and "settings" in record:
            then, now = record["settings"], settings_of(description, cell)
            other += [
                f"{key} {then.get(key)} then, {now[key]} now ({cell})" for key in now if then.get(key) != now[key]
            ]
    if other:
        raise SettingsError(
            f"{len(other)} settings of finished cells differ from comparison.json: {'; '.join(other[:3])}. Put them back, or "
            "begin another comparison with another -o; new arms, folds, seeds and numbers of labels may be added."
        )


def run_in_process(cell: Cell, comparison: Path, how: How, label: str) -> None:
    """One cell in a fresh process, whose output goes into the cell's log; says what became of it.

    A signal to this process makes the cell's save and end first. Raises Stopped for it, and where the cell's process was stopped.
    """
    folder = cell.folder(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "nnunet_ssl.comparison.cell_process", str(comparison), str(cell.number)]
    cores = str(min(8, os.cpu_count() or 1))
    variables = {"nnUNet_def_n_proc": cores, "PYTHONUNBUFFERED": "1", **os.environ, **environment(folder)}
    print(f"{label} {cell}: {folder / LOG}", flush=True)
    begun = time.monotonic()
    with open(folder / LOG, "ab") as log:
        process = subprocess.Popen(
            [*argv, how.device, str(how.num_gpus)],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait()
        except BaseException as error:
            finish = isinstance(error, Stopped) and error.number == getattr(signal, "SIGUSR2", None)
            process.send_signal(error.number if finish and isinstance(error, Stopped) else signal.SIGTERM)
            print("Waiting for the cell to save what it has trained ...", flush=True)
            process.wait()
            raise
    if code in STOPPED:
        raise Stopped(code - 128 if code > 0 else -code)
    if code not in (0, 1):
        how_it_ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " SIGKILL is often the system's answer to a lack of memory." if code == -signal.SIGKILL else ""
        record_failure(cell, comparison, f"Its process was {how_it_ended}.{hint}")
    elif code == 1 and cell.state(comparison) != FAILED:
        record_failure(cell, comparison, "Its process ended before it could say why.")
    record = cell.record(comparison)
    if record["state"] == FINISHED:
        print(f"  finished in {_clock(time.monotonic() - begun)}", flush=True)
    else:
        print(f"  FAILED: {record['error']}", flush=True)


def _stamp(cell: Cell, comparison: Path) -> int:
    return (cell.folder(comparison) / RECORD).stat().st_mtime_ns


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
