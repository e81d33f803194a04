"""What the folder of a pre-training says about the run: its state, epochs, settings and warnings, from its log files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nnunet_ssl.errors import BadFile

# As `trainers/loop/log_lines.py` writes them, behind nnU-Net's time stamp.
STAMP = r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+): "
EPOCH = re.compile(rf"^{STAMP}Epoch (?P<epoch>\d+)/(?P<epochs>\d+): (?P<rest>.*)$")
LEFT = re.compile(r"about (?P<left>.+) left$")
ROW = re.compile(r"^  (?P<name>[a-z ]+): +(?P<value>.*)$")
STOPPED = re.compile(rf"^{STAMP}(?P<why>.*(?: received| found): .*|Stopped after .*)$")
WARNING = re.compile(rf"^(?:{STAMP})?(?P<text>WARNING: .*)$")
COMPLETE = "Validation complete"
COMMAND = "command"  # the row of the summary that says how the run was started


@dataclass(frozen=True)
class Run:
    """A run as its log tells of it.

    settings: rows of the summary at its last start. epoch: epochs that are done. left: time, as the log says it. stopped: why
    it was left, None where it was not. complete: whether its final validation was made. warnings: each once, with the number of
    times it came. written: when the log was last written to (seconds since 1970). seconds: of the last epoch, None before there
    are two.
    """

    folder: Path
    settings: dict[str, str]
    epoch: int
    num_epochs: int | None
    last_line: str
    left: str | None
    stopped: str | None
    complete: bool
    warnings: dict[str, int]
    written: float
    seconds: float | None


def read_run(folder: Path, log: Path | None = None) -> Run:
    """The run in a folder `fold_...`, with `log` as its newest log where that has a name of its own.

    Raises BadFile where there is no log of a pre-training.
    """
    logs = sorted(folder.glob("training_log*.txt"))
    if log is not None and log not in logs:
        logs.append(log)
    if not logs:
        raise BadFile(
            f"{folder} holds no training_log*.txt. Expected the folder of a pre-training, which ends in fold_all or fold_0."
        )
    texts = [log.read_text(encoding="utf-8", errors="replace") for log in logs]
    lines = [line.rstrip() for text in texts for line in text.splitlines()]  # nnU-Net ends lines with a space
    starts = [number for number, line in enumerate(lines) if line == "Pre-training"]
    if not starts:
        raise BadFile(
            f"{logs[-1]} is no log of a pre-training. Expected the folder of one, as nnUNetv2_pretrain leaves it."
        )
    latest = lines[starts[-1] :]
    epochs = [match for match in map(EPOCH.match, lines) if match]
    last = epochs[-1] if epochs else None
    left = LEFT.search(last["rest"]) if last else None
    stopped = [match["why"] for match in map(STOPPED.match, latest) if match]
    warnings: dict[str, int] = {}
    for found in filter(None, map(WARNING.match, lines)):
        warnings[found["text"]] = warnings.get(found["text"], 0) + 1
    return Run(
        folder,
        _rows(latest),
        int(last["epoch"]) if last else 0,
        int(last["epochs"]) if last else None,
        f"Epoch {last['epoch']}/{last['epochs']}: {last['rest']}" if last else "",
        left["left"] if left else None,
        stopped[-1] if stopped else None,
        any(COMPLETE in line for line in latest),
        warnings,
        logs[-1].stat().st_mtime,
        _seconds([match["time"] for match in epochs[-2:]]),
    )


def _rows(lines: Sequence[str]) -> dict[str, str]:
    """The rows of a summary, which begins in the first of the lines."""
    rows = {}
    for line in lines[1:]:
        match = ROW.match(line)
        if match is None:
            break
        rows[match["name"]] = match["value"]
    return rows


def _seconds(times: Sequence[str]) -> float | None:
    if len(times) < 2:
        return None
    first, second = (datetime.fromisoformat(time) for time in times)
    return max(0.0, (second - first).total_seconds())
