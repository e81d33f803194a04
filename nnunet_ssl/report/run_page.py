"""report.html of a pre-training: how it stands, its curves and pictures, its settings, and what to type to go on with it."""

from __future__ import annotations

import json
import os
import shlex
from importlib import metadata
from pathlib import Path

from nnunet_ssl.messages import counted
from nnunet_ssl.report.page import Page
from nnunet_ssl.report.run_folder import COMMAND, Run, read_run

NAME = "report.html"
MAX_PREVIEWS = 24  # through the run, so that the page stays below some ten megabytes
MAX_CASES = 4  # held-out cases whose pictures are shown
PACKAGES = ("nnunet_ssl", "nnunetv2", "torch", "numpy")
NEWS_MISSING = 4  # epochs without a line in the log, after which the page says so
CURVES = (
    "Losses, terms, learning rate and time by epoch. Dashed: the yardstick, the loss of the best answer that does not look at "
    "the image."
)
PATIENCE = 900.0  # seconds, where the length of an epoch is not known


def write_report(folder: str | os.PathLike[str], log: str | os.PathLike[str] | None = None) -> Path:
    """Write report.html into the folder of a pre-training from what the run has left there; returns its path.

    log: as in `read_run`. Raises BadFile where the folder holds none, and OSError.
    """
    run = read_run(Path(folder), None if log is None else Path(log))
    file = run.folder / NAME
    _page(run).write(file)
    return file


def _page(run: Run) -> Page:
    page = Page(_title(run.folder), "Pre-training")
    state = _state(run)
    if run.complete or run.stopped:
        page.key_message(state)
    else:
        page.news(state, run.written, PATIENCE if run.seconds is None else max(60.0, NEWS_MISSING * run.seconds))
    if run.last_line:
        page.paragraph(run.last_line)
    if run.warnings:
        page.heading("Warnings")
        for text, times in run.warnings.items():
            page.paragraph(text if times == 1 else f"{text} ({times} times)")
    _curves(page, run)
    _previews(page, run)
    _validation(page, run)
    _commands(page, run)
    page.heading("Settings")
    page.facts({name: value for name, value in run.settings.items() if name != COMMAND})
    page.heading("Versions")
    page.facts(_versions(), "Of the installation that wrote this page.")
    return page


def _title(folder: Path) -> str:
    """Data set, trainer and fold, from nnU-Net's names of the folders."""
    folder = folder.resolve()
    return f"{folder.parent.parent.name}: {folder.parent.name.split('__')[0]}, {folder.name.replace('_', ' ')}"


def _state(run: Run) -> str:
    done = f"{run.epoch} of {counted(run.num_epochs, 'epoch')}" if run.num_epochs else "no epoch yet"
    if run.complete:
        return f"Finished: {done}, and the held-out cases."
    if run.stopped:
        return f"Stopped: {run.stopped}"
    left = f", about {run.left} left then" if run.left else ""
    return f"Running when this page was written: {done} done{left}."


def _curves(page: Page, run: Run) -> None:
    picture = run.folder / "progress.png"
    if picture.is_file():
        page.heading("Curves")
        page.figure(
            picture,
            CURVES,
        )


def _previews(page: Page, run: Run) -> None:
    files = sorted((run.folder / "previews").glob("epoch_*.png"))
    if not files:
        return
    page.heading("What the network sees, and what it makes of it")
    page.paragraph("The same held-out image through the epochs.")
    # The first, the last, and as many between them as there is room for, evenly.
    number = min(len(files), MAX_PREVIEWS)
    chosen = [files[round(n * (len(files) - 1) / max(number - 1, 1))] for n in range(number)] if number > 1 else files
    page.slides([(file, f"Epoch {int(file.stem.rpartition('_')[2])}") for file in chosen])


def _validation(page: Page, run: Run) -> None:
    summary = run.folder / "validation" / "summary.json"
    if not run.complete or not summary.is_file():
        return
    found = json.loads(summary.read_text(encoding="utf-8"))
    page.heading("Held-out cases")
    means = {name: f"{value:.4f}" for name, value in found["mean"].items()}
    page.facts(means, f"Mean of {counted(len(found['cases']), 'case')}.")
    for file in sorted(summary.parent.glob("*.png"))[:MAX_CASES]:
        page.figure(file, file.stem.replace("__", "/"))


def _commands(page: Page, run: Run) -> None:
    command = run.settings.get(COMMAND)
    if run.complete:
        page.heading("To fine-tune the network")
        weights = shlex.quote(str(run.folder.resolve() / "checkpoint_final.pth"))
        page.paragraph("The number of a data set with labels stands for ID.")
        page.commands([f"nnUNetv2_finetune ID -pretrained_weights {weights}"])
    elif command:
        page.heading("To continue")
        page.commands([command])
    else:
        page.heading("To continue")
        page.paragraph("The command that started the run continues it (nnUNetv2_train wants --c).")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
