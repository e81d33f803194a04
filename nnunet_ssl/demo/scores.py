"""Dice of the demo's test cases, as nnUNetv2_evaluate_folder left them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from nnunet_ssl.demo.data import FILE_ENDING, LABELS
from nnunet_ssl.demo.job import TRAINERS, prediction_folder

STRUCTURES = {name: label for name, label in LABELS.items() if label > 0}
BOTH = "mean of both"
Scores = Mapping[str, tuple[list[float], list[float]]]


def read_scores(folder: Path) -> tuple[list[str], Scores]:
    """Test cases, and per structure their Dice (from scratch, fine-tuned), from nnU-Net's summary.json files.

    The last entry is the mean of the structures.
    """
    scratch, finetuned = (_dice_per_case(folder / prediction_folder(run) / "summary.json") for run in TRAINERS)
    cases = sorted(scratch)
    return cases, {
        name: ([scratch[case][name] for case in cases], [finetuned[case][name] for case in cases])
        for name in (*STRUCTURES, BOTH)
    }


def _dice_per_case(summary_file: Path) -> dict[str, dict[str, float]]:
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    cases = {}
    for case in summary["metric_per_case"]:
        dice = {name: float(case["metrics"][str(label)]["Dice"]) for name, label in STRUCTURES.items()}
        cases[Path(case["reference_file"]).name.removesuffix(FILE_ENDING)] = {**dice, BOTH: fmean(dice.values())}
    return cases
