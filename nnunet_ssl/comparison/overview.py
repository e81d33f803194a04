"""What a comparison's folder says of its cells, as text; and the tables and the page made from it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ssl.comparison.cells import FAILED, FINISHED, LOCK, RUNNING, WAITING, Cell, cells_of
from nnunet_ssl.comparison.description import read_description
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.files.locks import Lock
from nnunet_ssl.messages import counted

if TYPE_CHECKING:
    from nnunet_ssl.comparison.work import Outcome

SUMMARY = "summary.json"
INTERRUPTED = "interrupted"
COLUMNS = ("number", "state", "data set", "arm", "labelled", "fold", "seed")


def state_now(cell: Cell, comparison: Path) -> str:
    """As `Cell.state`, with "interrupted" for a cell whose process has ended."""
    state = cell.state(comparison)
    if state != RUNNING:
        return state
    lock = Lock(cell.folder(comparison) / LOCK, "looking")
    with suppress(OSError):
        if lock.try_acquire():
            lock.release()
            return INTERRUPTED
    return RUNNING


def table(cells: Sequence[Cell], comparison: Path) -> str:
    """All cells with their numbers and states, and what failed with its reason."""
    states = {cell: state_now(cell, comparison) for cell in cells}
    rows = [
        (str(c.number), states[c], c.entry.dataset, c.arm.name, str(c.labelled), str(c.fold), str(c.seed))
        for c in cells
    ]
    widths = [max(len(row[n]) for row in (COLUMNS, *rows)) for n in range(len(COLUMNS))]
    lines = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in (COLUMNS, *rows)]
    failed = [f"{cell.number}: {cell.record(comparison).get('error')}" for cell in cells if states[cell] == FAILED]
    return "\n".join([*lines, "", counts(states.values()), *failed])


def counts(states: object) -> str:
    """6 cells: 2 finished, 4 waiting."""
    found = Counter(states)  # type: ignore[call-overload]
    order = (FINISHED, FAILED, RUNNING, INTERRUPTED, WAITING)
    told = ", ".join(f"{found[state]} {state}" for state in order if found[state])
    return f"{counted(found.total(), 'cell')}: {told}"


def ending(outcome: Outcome, comparison: Path, run: Sequence[int] | None) -> str:
    """What a process says when it has nothing left to do."""
    lines = [f"\n{counted(len(outcome.finished), 'cell')} finished."]
    if outcome.others:
        lines.append(f"{counted(len(outcome.others), 'cell')} left to the processes that work on them.")
    if outcome.failed:
        lines += [f"{counted(len(outcome.failed), 'cell')} failed:"]
        lines += [f"  {cell.number} ({cell}): {cell.record(comparison).get('error')}" for cell in outcome.failed]
        chosen = [] if run is None else ["--run", *map(str, run)]
        again = shlex.join(["nnUNetv2_pretrain_compare", "-o", str(comparison), *chosen])
        lines.append(f"Once that is mended, they are tried again by: {again}")
    return "\n".join(lines)


def write_everything(comparison: Path) -> str:
    """scores.csv of all finished cells, then summary.json and the page; returns what to print."""
    from nnunet_ssl.comparison.evaluation import join_scores
    from nnunet_ssl.report.comparison import write_report

    description = read_description(comparison)
    if description is None:
        raise SettingsError(f"There is no comparison in {comparison}. Name its folder with -o.")
    finished = [cell for cell in cells_of(description) if cell.state(comparison) == FINISHED]
    scores = join_scores(finished, comparison)
    page = write_report(comparison)
    answer = read_json(comparison / SUMMARY).get("answer", [])
    return "\n".join([*answer, str(scores), str(page)])
