"""A comparison's folder as the command leaves it, with made-up scores: for tests of the statistics and of the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_ssl.report.comparison.folder import COLUMNS, Key

STRUCTURES = ("anterior", "posterior")
VERSIONS = {"nnunetv2": "2.8.1", "torch": "2.10.0", "nnunet_ssl": "0.1.0"}


def make_comparison(
    folder: Path,
    datasets: Sequence[str] = ("Dataset004_Hippocampus", "Dataset007_Pancreas", "Dataset012_Spleen"),
    effects: Mapping[str, float] | None = None,
    folds: Sequence[int] = (0, 1),
    seeds: Sequence[int] = (0, 1),
    labelled: Sequence[int | str] = (10, 50, "all"),
    cases: int = 12,
    metrics: Sequence[str] = ("Dice", "NSD"),
    structures: Sequence[str] = STRUCTURES,
    state: Callable[[Key], str] = lambda key: "finished",
    names: Sequence[str] | None = None,
    epochs: int = 30,
    **description: Any,
) -> Path:
    """Write a folder; effects: arm -> what it adds to the score with few labels (less with more); scratch adds nothing.

    state: of a cell. Every fold tests cases of its own (names: the same ones in every fold).
    """
    effects = {"scratch": 0.0, "mae": 0.06, "voco": -0.01} if effects is None else effects
    random = np.random.default_rng(3)
    arms = [
        {
            "name": arm,
            "weights": None if arm == "scratch" else f"/models/{arm}/checkpoint_final.pth",
            "trainer": "SSLScratchTrainer" if arm == "scratch" else "SSLFinetuneTrainer",
            "plans": None,
        }
        for arm in effects
    ]
    content = {
        "format": 1,
        "datasets": [{"dataset": name, "configuration": "3d_fullres"} for name in datasets],
        "arms": arms,
        "folds": list(folds),
        "seeds": list(seeds),
        "labelled": list(labelled),
        "epochs": epochs,
        "iterations_per_epoch": None,
        "batch_size": None,
        "metrics": list(metrics),
        "tolerance_mm": 1.0,
        "protocol": None,
        "keep": "predictions",
        **description,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(content), encoding="utf-8")
    tables = []
    for n, dataset in enumerate(datasets):
        for fold in folds:
            tested = list(names or [f"{dataset.partition('_')[2].lower()}_{fold}{k:02d}" for k in range(cases)])
            hardness = random.normal(0, 0.07, len(tested))
            for seed in seeds:
                for number in labelled:
                    share = 1.0 if number == "all" else min(1.0, float(number) / 100)
                    for arm in arms:
                        key = Key(dataset, arm["name"], str(fold), str(seed), str(number))
                        effect = effects[arm["name"]] * (1.3 - share)
                        own = hardness + random.normal(0, 0.02, len(tested)) + random.normal(0, 0.004)
                        values = np.clip(0.62 - 0.05 * n + 0.22 * share + effect + own, 0, 1)
                        table = _cell(folder, key, state(key), tested, values, arm, metrics, structures, epochs, random)
                        tables += [] if table is None else [table]
    if tables:
        pd.concat(tables).to_csv(folder / "scores.csv", index=False)
    return folder


def _cell(
    folder: Path,
    key: Key,
    state: str,
    cases: Sequence[str],
    values: np.ndarray,
    arm: Mapping[str, Any],
    metrics: Sequence[str],
    structures: Sequence[str],
    epochs: int,
    random: np.random.Generator,
) -> pd.DataFrame | None:
    if state == "not begun":
        return None
    place = folder / key.folder()
    place.mkdir(parents=True, exist_ok=True)
    time = np.arange(epochs)
    loss = -0.8 + 0.9 * np.exp(-time / (4 if arm["weights"] else 8)) + random.normal(0, 0.01, epochs)
    noted = {
        **key._asdict(),
        "fold": int(key.fold),
        "seed": int(key.seed),
        "labelled": key.labelled if key.labelled == "all" else int(key.labelled),
        "state": state,
        "error": "CUDA out of memory. Use a smaller batch: --batch-size 1" if state == "failed" else None,
        "trainer": arm["trainer"],
        "plans": "nnUNetPlans_mae",
        "initial_lr": 0.001 if arm["weights"] else 0.01,
        "num_epochs": epochs,
        "training_cases": [f"train_{k}" for k in range(100 if key.labelled == "all" else int(key.labelled))],
        "test_cases": list(cases),
        "seconds": {"training": 3600.0, "prediction": 60.0, "evaluation": 5.0},
        "commands": [f"nnUNetv2_train {key.dataset} 3d_fullres {key.fold} -tr {arm['trainer']} -p nnUNetPlans_mae"],
        "versions": VERSIONS,
        "transfer": {
            "encoder_fraction": 1.0,
            "target": {"family": "ResidualEncoderUNet"},
            "notes": ["stem: 1 channel repeated for 2"],
        }
        if arm["weights"]
        else None,
        "curve": {
            "train_losses": loss.tolist(),
            "val_losses": (loss + 0.05).tolist(),
            "pseudo_dice": np.clip(-loss, 0, 1).tolist(),
        },
        "warnings": [],
    }
    (place / "cell.json").write_text(json.dumps(noted), encoding="utf-8")
    if state != "finished":
        return None
    rows = [
        [*key, case, structure, metric, min(1.0, value + 0.02 * k + 0.03 * m)]
        for case, value in zip(cases, values, strict=True)
        for k, structure in enumerate(structures)
        for m, metric in enumerate(metrics)
    ]
    order = [*Key._fields, "case", "structure", "metric", "value"]
    table = pd.DataFrame(rows, columns=order)[COLUMNS]
    table.to_csv(place / "scores.csv", index=False)
    return table
