"""The table of `methods.py` from the result files of its runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from few_labels import SCRATCH, Protocol

from nnunet_ssl.report.compare import compare


def read(file: Path) -> dict[str, Any] | None:
    """A result, None while it is missing."""
    return json.loads(file.read_text()) if file.is_file() else None


def collect(folder: Path, protocol: Protocol, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """One row per method and backbone, with what is known so far."""
    rows = []
    for method, backbone in pairs:
        if method == SCRATCH:
            continue
        results = folder / "results" / backbone
        row: dict[str, Any] = {"method": method, "backbone": backbone}
        times = read(folder / "results" / backbone / "times.json") or {}
        if method in times:
            row["time"] = times[method]
        pretraining = read(results / method / "pretraining.json")
        if pretraining is not None:
            row |= {name: pretraining[name] for name in ("start", "end", "batch_size", "seconds")}
        twins = [[read(results / m / f"seed_{s}.json") for s in protocol.seeds] for m in (SCRATCH, method)]
        if all(result is not None for twin in twins for result in twin):
            scores = [[result["dice"]["mean"] for result in twin if result] for twin in twins]
            row["dice"] = compare(*scores)
            row["dice"]["per_seed"] = [[fmean(values) for values in twin] for twin in scores]
        rows.append(row)
    return rows


def markdown(protocol: Protocol, rows: Sequence[dict[str, Any]]) -> str:
    """The table for people; a dash where a result is still missing."""
    steps = protocol.iterations_per_epoch
    lines = [
        f"{Path(protocol.data).name}, patches of {'x'.join(map(str, protocol.patch_size))} voxels: "
        f"{protocol.pretrain_epochs * steps} pre-training steps on all images without labels; "
        f"{protocol.finetune_epochs * steps} training steps on {protocol.labelled} labelled cases, {protocol.test} test "
        f"cases, seeds {', '.join(map(str, protocol.seeds))} of cases and fine-tuning, one pre-training.",
        "",
        "| backbone | method | time / MAE | loss: start | end | trivial | Dice from scratch | fine-tuned "
        "| difference (95 % interval over cases) | std over seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        time = f"{row['time']['relative']:.2f}" if "time" in row else "-"
        losses = ["-"] * 3
        if "start" in row:
            losses = [f"{v:.3f}" for v in (row["start"]["loss"], row["end"]["loss"], row["end"]["trivial"])]
        dice = ["-"] * 4
        if "dice" in row:
            d = row["dice"]
            interval = f"{d['difference']:+.3f} ({d['difference_low']:+.3f} to {d['difference_high']:+.3f})"
            dice = [f"{d['scratch_mean']:.3f}", f"{d['finetuned_mean']:.3f}", interval, f"{d['seed_std']:.3f}"]
        lines.append(f"| {' | '.join([row['backbone'], row['method'], time, *losses, *dice])} |")
    return "\n".join(lines) + "\n"
