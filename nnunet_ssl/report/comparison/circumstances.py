"""How the numbers of a comparison came about: settings, versions, time, commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from nnunet_ssl.report.comparison.folder import Comparison, short
from nnunet_ssl.report.page import Page

SHOWN = (
    "labelled",
    "folds",
    "seeds",
    "epochs",
    "iterations_per_epoch",
    "batch_size",
    "metrics",
    "tolerance_mm",
    "protocol",
    "keep",
)


def circumstances(page: Page, comparison: Comparison, summary: Mapping[str, Any]) -> None:
    """The last sections of the page."""
    page.heading("The arms")
    _arms(page, comparison)
    _weights(page, comparison)
    _transfers(page, comparison)
    page.heading("Circumstances")
    description = comparison.description
    facts: dict[str, object] = {
        "data sets": ", ".join(
            " ".join(str(value) for value in entry.values() if isinstance(value, str))
            for entry in description["datasets"]
        )
    }
    facts |= {
        name.replace("_mm", " [mm]").replace("_", " "): _text(description[name])
        for name in SHOWN
        if description.get(name) is not None
    }
    facts |= {f"time for {what}": _clock(seconds) for what, seconds in summary["seconds"].items()}
    facts |= _versions(comparison)
    page.facts(facts)
    _commands(page, comparison)


def _arms(page: Page, comparison: Comparison) -> None:
    cells = comparison.finished()
    rows: list[list[object]] = []
    for entry in comparison.description["arms"]:
        own = [cell.noted for cell in cells if cell.key.arm == entry["name"]]
        name = entry["name"] + (" (reference)" if entry["name"] == comparison.reference else "")
        rows.append(
            [
                name,
                _values(own, "trainer") or entry.get("trainer") or "",
                _values(own, "plans") or entry.get("plans") or "",
                _values(own, "initial_lr"),
                _values(own, "num_epochs"),
            ]
        )
    page.table(
        ["arm", "trainer", "plans", "learning rate", "epochs"],
        rows,
        "What was used. Weights (below) are meant to differ, and with them the learning rate, which suits random or pre-trained "
        "ones. Whatever else differs is named above.",
    )


def _weights(page: Page, comparison: Comparison) -> None:
    page.facts({f"weights of {arm['name']}": arm.get("weights") or "random" for arm in comparison.description["arms"]})


def _values(noted: list[Mapping[str, Any]], name: str) -> str:
    """What the trainings of an arm noted under a name, each value once."""
    return ", ".join(dict.fromkeys(_text(entry[name]) for entry in noted if entry.get(name) is not None))


def _transfers(page: Page, comparison: Comparison) -> None:
    """What became of the weights: once per data set and arm."""
    rows: dict[tuple[str, str], list[object]] = {}
    for cell in comparison.finished():
        transfer = cell.noted.get("transfer")
        if isinstance(transfer, dict) and isinstance(transfer.get("encoder_fraction"), (int, float)):
            notes = [str(note) for note in transfer.get("notes") or []]
            row: list[object] = [
                short(cell.key.dataset),
                cell.key.arm,
                f"{transfer['encoder_fraction']:.1%}",
                "; ".join(notes),
            ]
            rows.setdefault((cell.key.dataset, cell.key.arm), row)
    if rows:
        page.table(
            ["data set", "arm", "of the encoder from the checkpoint", "adapted"],
            list(rows.values()),
            "What became of the pre-trained weights, by parameters of stem, encoder and position embedding.",
        )


def _versions(comparison: Comparison) -> dict[str, str]:
    found: dict[str, dict[str, None]] = {}
    for cell in comparison.finished():
        for name, version in (cell.noted.get("versions") or {}).items():
            found.setdefault(str(name), {})[str(version)] = None
    return {name: ", ".join(versions) for name, versions in found.items()}


def _commands(page: Page, comparison: Comparison) -> None:
    page.heading("To repeat it")
    page.paragraph(
        "The first line goes on with what is not finished, the second makes this page anew. A copy of comparison.json in a new "
        "folder does all of it again."
    )
    folder = shlex.quote(str(comparison.folder))
    page.commands([f"nnUNetv2_pretrain_compare -o {folder}", f"nnUNetv2_pretrain_compare -o {folder} --report"])
    shown: set[str] = set()
    lines: list[str] = []
    for cell in comparison.finished():
        commands = [str(line) for line in cell.noted.get("commands") or []]
        if commands and cell.key.arm not in shown:
            shown.add(cell.key.arm)
            lines += [*([""] if lines else []), f"# {cell.key.words()}", *commands]
    if lines:
        page.paragraph("What was done for one cell of every arm; each cell's cell.json holds its own commands.")
        page.commands(lines)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(entry) for entry in value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{seconds:.0f} s"
        if minutes < 2
        else f"{minutes} min"
    )
