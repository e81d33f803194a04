"""A tiny pre-training that gets SIGTERM at every line of the loop: python signalled_at_every_line.py JOB.json

A trace function stops at each line of the loop's own files when it is reached for the first time: at the start, in the second of
three epochs, and at the end. There it forks. The child gets the signal, goes on until it has saved and left, and tells what it
saved. Lines that save the same are continued once. The job's "report" holds how many lines there were, and what differed from the
undisturbed run, which is the parent's own. "stride" N leaves out all lines but every N-th.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock

from nnunet_ssl.integration import logger
from nnunet_ssl.signals import SIGNALS
from nnunet_ssl.trainers import ssl_trainer
from nnunet_ssl.trainers.distributed import processes
from nnunet_ssl.trainers.loop import epochs, position, progress, state, stepping, stopping, validation
from nnunet_ssl.trainers.pretraining import SSLMAETrainer

sys.path.insert(0, str(Path(__file__).parents[1] / "drills"))
from same_run import content, digest

MODULES = (ssl_trainer, epochs, position, processes, progress, state, stepping, stopping, validation)
FILES = {module.__file__ for module in (*MODULES, logger, stock)}


def make(job: dict[str, Any], folder: Path) -> Any:
    plans = {**job["plans"], "continue_training": False}
    trainer: Any = SSLMAETrainer(plans, "3d_fullres", "all", job["dataset_json"], torch.device("cpu"))  # type: ignore[arg-type]
    folder.mkdir(parents=True)
    trainer.output_folder, trainer.log_file = str(folder), str(folder / "log.txt")
    return trainer


def finish(trainer: Any) -> dict[str, Any]:
    trainer.run_training()
    trainer.perform_actual_validation()
    return content(Path(trainer.output_folder) / "checkpoint_final.pth")


def main(job: dict[str, Any]) -> None:  # noqa: C901  # the processes of a drill, one after the other
    torch.set_num_threads(1)
    MetaLogger.plot_progress_png = lambda *_: None
    epochs.draw_sample = validation.draw_sample = lambda *_: None  # type: ignore[assignment]
    for module in (epochs, stopping, ssl_trainer):
        module.update_report = lambda *_: None  # type: ignore[attr-defined]
    scratch = Path(job["scratch"])
    (scratch / "lines").mkdir(parents=True)
    trainer = make(job, scratch / "undisturbed")
    seen: set[tuple[str, int, int]] = set()
    forked: list[tuple[str, int, int]] = []
    parent = os.getpid()
    number = int(job["signal"])

    def trace(frame: Any, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if file not in FILES:
            return None
        if event == "line" and len(trainer.interruption._before) == len(SIGNALS):
            now = trainer.position
            line = (os.path.basename(file), frame.f_lineno, now.epoch)
            start = now.epoch == 0 and not now.finished
            if line not in seen and (start or now.epoch in (1, trainer.num_epochs)):
                seen.add(line)
                if len(seen) % job["stride"] == 0:
                    fork(line)
        return trace

    def fork(line: tuple[str, int, int]) -> None:
        forked.append(line)
        here, kept = trainer.output_folder, scratch / "kept"
        shutil.copytree(here, kept)
        child = os.fork()
        if child:  # the child has worked in the folder whose name local variables may hold
            os.waitpid(child, 0)
            shutil.move(here, scratch / "lines" / "_".join(map(str, line)))
            shutil.move(kept, here)
            return
        sys.settrace(None)
        trainer.interruption._process = os.getpid()
        signal.raise_signal(number)

    code: Any = None
    sys.settrace(trace)
    try:
        expected = finish(trainer)
    except SystemExit as error:
        code = error.code
    finally:
        sys.settrace(None)
        if os.getpid() != parent:
            saved = sorted(Path(trainer.output_folder).glob("checkpoint_*.pth"), key=lambda p: p.stat().st_mtime_ns)
            what = digest(content(saved[-1])) if saved else "nothing"
            (Path(trainer.output_folder) / "left.json").write_text(json.dumps([code, saved[-1].name, what]))
            os._exit(0)
    left: dict[str, list[Path]] = defaultdict(list)
    wrong = []
    for line in forked:
        folder = scratch / "lines" / "_".join(map(str, line))
        if not (folder / "left.json").exists():
            wrong.append(f"{line}: died")
            continue
        code, name, what = json.loads((folder / "left.json").read_text())
        complete = (
            folder / "validation" / "summary.json"
        ).exists()  # after the last question there is nothing left to stop
        if code != job["code"] and not (code is None and complete):
            wrong.append(f"{line}: exit code {code}")
        left[f"{name} {what}"].append(folder)
    for number_of, folders in enumerate(left.values()):
        again = make(job, scratch / "continued" / str(number_of))
        ignored = shutil.ignore_patterns("running.lock")  # moved about while it was held
        shutil.copytree(folders[0], again.output_folder, dirs_exist_ok=True, ignore=ignored)
        final = Path(again.output_folder) / "checkpoint_final.pth"
        again.load_checkpoint(str(final if final.exists() else final.with_name("checkpoint_latest.pth")))
        place = f"{again.position.epoch}, {len(again.position.replayed)}"
        found = finish(again)
        different = [key for key in expected if digest(found[key]) != digest(expected[key])]
        if different:
            wrong.append(
                f"continued from {place}: {different} differ, e.g. after {folders[0].name}, {len(folders)} lines"
            )
    report = {"lines": len(forked), "places": len(left), "wrong": wrong}
    Path(job["report"]).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
