"""Run commands one after the other: each in a fresh process, with a log file of its own and one live line."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ssl.errors import DemoError

LOGS = "logs"
LAST_LINES = 15


@dataclass(frozen=True)
class Step:
    """A command line.

    name: of the log file. title: for people. argv: program and arguments; paths are relative to the demo's folder.
    """

    name: str
    title: str
    argv: tuple[str, ...]

    @property
    def line(self) -> str:
        """What to type to do the same by hand."""
        return shlex.join(self.argv)


def run_steps(steps: Sequence[Step], folder: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Run all steps in `folder` and return the seconds of each by name; raises DemoError at the first that fails."""
    (folder / LOGS).mkdir(exist_ok=True)
    seconds = {}
    for number, step in enumerate(steps, start=1):
        label = f"[{number:2d}/{len(steps)}] {step.title}"
        print(f"$ {step.line}")
        start = time.monotonic()
        log = folder / LOGS / f"{number:02d}_{step.name}.log"
        _run_command(step, folder, environment, log, label)
        seconds[step.name] = time.monotonic() - start
        _live("")
        print(f"{label}: {clock(seconds[step.name])}\n")
    return seconds


def clock(seconds: float) -> str:
    """Minutes and seconds, m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def find_program(name: str) -> str:
    """Path of a console script of this Python's installation; raises DemoError when it is not there."""
    if name == "python":
        return sys.executable
    places = [str(Path(sys.executable).parent), sysconfig.get_path("scripts"), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise DemoError(f"The command {name} is not installed beside {sys.executable}. Type: pip install nnunet_ssl")
    return found


def _run_command(step: Step, folder: Path, environment: Mapping[str, str], log: Path, label: str) -> None:
    argv = [find_program(step.argv[0]), *step.argv[1:]]
    start = time.monotonic()
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"$ {step.line}\n")
        file.flush()
        process = subprocess.Popen(
            argv,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    code = process.wait(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    _live(f"{label}  {clock(time.monotonic() - start)}  {_last_line(log)}")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code != 0:
        _live("")
        with open(log, encoding="utf-8", errors="replace") as file:
            tail = "".join(f"  {line.rstrip()}\n" for line in deque(file, maxlen=LAST_LINES))
        raise DemoError(f"{label} failed with exit code {code}. Its last lines:\n{tail}The whole log: {log}")


def _last_line(log: Path) -> str:
    """The last non-empty line of a log that is being written; progress bars count by their last state."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    return lines[-1] if lines else ""


def _live(text: str) -> None:
    """Replace the live line on a terminal; nothing elsewhere, where it would fill log files."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print("\r" + text[:width].ljust(width) + ("" if text else "\r"), end="", flush=True)
