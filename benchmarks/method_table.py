"""The tables of `learn.py` from the files of its runs."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from few_labels import Protocol, comparison, pretrained

from nnunet_ssl.cli.pretrain_flags import BACKBONES
from nnunet_ssl.methods import method_names
from nnunet_ssl.report.comparison.paired import compare
from nnunet_ssl.trainers.loop.judging import YARDSTICK, last_finite

ALIVE = ("explained_variance", "spread", "effective_rank", "accuracy", "rotation_accuracy")  # where a task has them


def learning_row(file: Path) -> dict[str, Any]:
    """What the log in a finished pre-training's checkpoint says."""
    checkpoint = torch.load(file, weights_only=True, map_location="cpu")
    log = checkpoint["logging"]
    settings = checkpoint["init_args"]["plans"]["configurations"]["3d_fullres"]["ssl"]
    row: dict[str, Any] = {"steps": len(log["val_losses"]) * settings["num_iterations_per_epoch"]}
    for name, key in (("yardstick", YARDSTICK), ("loss", "val_losses"), *((a, f"val_{a}") for a in ALIVE)):
        row[name] = last_finite(log.get(key, ()))
    return row


def learning_table(folder: Path, protocol: Protocol) -> tuple[list[dict[str, Any]], str]:
    """One row per pre-training that is done."""
    rows, names = [], ("yardstick", "loss", *ALIVE)
    for backbone in BACKBONES:
        for method in method_names():
            for number in range(99):
                file = pretrained(folder, backbone, method, number)
                if not file.is_file():
                    break
                rows.append({"backbone": backbone, "method": method, "seed": number, **learning_row(file)})
    lines = [
        f"{Path(protocol.data).name}, all {len(protocol.cases)} images without labels, presets as shipped but for the epochs.",
        "",
        f"| backbone | method | seed | steps | {' | '.join(n.replace('_', ' ') for n in names)} | of the yardstick |",
        f"|{'---|' * (len(names) + 5)}",
    ]
    for row in rows:
        values = ["" if row[n] is None else f"{row[n]:.3f}" for n in names]
        share = f"{row['loss'] / row['yardstick']:.2f}" if row["yardstick"] else ""
        cells = [row["backbone"], row["method"], str(row["seed"]), str(row["steps"]), *values, share]
        lines.append(f"| {' | '.join(cells)} |")
    return rows, "\n".join(lines) + "\n" if rows else ""


def dice_of(folder: Path, backbone: str) -> dict[str, list[dict[str, float]]]:
    """{arm: per seed {case: mean Dice of its structures}} of a backbone's comparison, as far as it is finished."""
    file = comparison(folder, backbone) / "scores.csv"
    if not file.is_file():
        return {}
    table = pd.read_csv(file)
    means = table[table["metric"] == "Dice"].groupby(["arm", "seed", "case"])["value"].mean()
    return {
        arm: [means[arm, seed].to_dict() for seed in sorted(means[arm].index.unique("seed"))]
        for arm in means.index.unique("arm")
    }


def dice_table(folder: Path, protocol: Protocol) -> tuple[list[dict[str, Any]], str]:
    """One row per pre-training all of whose fine-tunings are done, and their twins from scratch."""
    rows = []
    for backbone in BACKBONES:
        scores = dice_of(folder, backbone)
        finished = {arm: runs for arm, runs in scores.items() if len(runs) == protocol.seeds}
        before = finished.pop("scratch", [])
        for arm, after in finished.items() if before else ():
            cases = sorted(before[0])
            pair = [[[run[case] for case in cases] for run in runs] for runs in (before, after)]
            method, number = arm.rsplit("-", 1)
            rows.append({"backbone": backbone, "method": method, "pretraining": int(number), **compare(*pair)})
            rows[-1]["per_seed"] = [fmean(b.values()) - fmean(a.values()) for a, b in zip(before, after, strict=True)]
    lines = [
        "",
        f"Dice on {protocol.test} held-out cases after training on {protocol.labelled} labelled ones; "
        f"{protocol.seeds} seeds of cases and fine-tuning.",
        "",
        "| backbone | method | pre-training | from scratch | fine-tuned | difference (95 % interval over cases) | per seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        interval = f"{row['difference']:+.3f} ({row['difference_low']:+.3f} to {row['difference_high']:+.3f})"
        cells = [row["backbone"], row["method"], str(row["pretraining"])]
        cells += [f"{row['scratch_mean']:.3f}", f"{row['finetuned_mean']:.3f}", interval]
        lines.append(f"| {' | '.join([*cells, ', '.join(f'{d:+.3f}' for d in row['per_seed'])])} |")
    return rows, "\n".join(lines) + "\n" if rows else ""
