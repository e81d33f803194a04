"""From nnU-Net's predictions of held-out cases to the rows of scores.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import key_to_label_or_region, region_or_label_to_mask
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ssl.comparison.cells import SCORES, Cell
from nnunet_ssl.comparison.surfaces import surface_scores
from nnunet_ssl.errors import BadFile
from nnunet_ssl.files.atomic import write_text
from nnunet_ssl.files.entering import read_json

COLUMNS = ("dataset", "arm", "fold", "seed", "labelled", "case", "structure", "metric", "value")
SURFACES = ("NSD", "HD95")
Row = dict[str, Any]


def structure_names(dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """{key in nnU-Net's summary.json: name of the structure}: labels ("1") and regions ("(1, 2)") of a data set."""
    names = {}
    for name, value in dataset_json["labels"].items():
        label = tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else int(value)
        if name != "ignore" and label not in (0, (0,)):
            names[str(label)] = str(name)
    return names


def scores_of(
    validation: Path, truth: Path, plans: Mapping[str, Any], dataset_json: Mapping[str, Any], metrics: Sequence[str],
    tolerance_mm: float,
) -> Iterator[Row]:  # fmt: skip
    """Case, structure, metric and value of every prediction in nnU-Net's folder `validation`, always in the same order.

    Dice are those of nnU-Net's summary.json: NaN where a structure is in neither. Surfaces are compared in the images' own
    voxels. truth: folder of label files. Raises BadFile for a summary that is none.
    """
    path = validation / "summary.json"
    content = read_json(path)
    reader = PlansManager(dict(plans)).image_reader_writer_class()
    names, ignored = structure_names(dataset_json), dataset_json["labels"].get("ignore")
    ending = dataset_json["file_ending"]
    try:
        found = {Path(c["prediction_file"]).name.removesuffix(ending): c["metrics"] for c in content["metric_per_case"]}
    except (KeyError, TypeError) as error:
        raise BadFile(f"{path}: no summary of nnU-Net's ({error!r})", path=path) from error
    for case in sorted(found):
        masks: tuple[np.ndarray, np.ndarray, Sequence[float]] | None = None
        for key, name in names.items():
            values = {"Dice": float(found[case].get(key, {}).get("Dice", math.nan))}
            if set(metrics) & set(SURFACES):
                masks = masks or _read(reader, truth / f"{case}{ending}", validation / f"{case}{ending}")
                values.update(_surfaces(masks, key_to_label_or_region(key), ignored, tolerance_mm))
            yield from (
                {"case": case, "structure": name, "metric": metric, "value": values[metric]} for metric in metrics
            )


def _read(reader: Any, truth: Path, prediction: Path) -> tuple[np.ndarray, np.ndarray, Sequence[float]]:
    """Label maps [spatial] and their spacing [mm], without the axis that 2-D images lack."""
    (expected, properties), (found, _) = reader.read_seg(str(truth)), reader.read_seg(str(prediction))
    spacing = list(properties["spacing"])
    if expected.shape[1] == 1:
        return expected[0, 0], found[0, 0], spacing[1:]
    return expected[0], found[0], spacing


def _surfaces(
    masks: tuple[np.ndarray, np.ndarray, Sequence[float]], label: Any, ignored: Any, tolerance_mm: float
) -> dict[str, float]:
    truth, found, spacing = masks
    counted = np.ones(truth.shape, bool) if ignored is None else truth != ignored
    pair = [region_or_label_to_mask(labels, label) & counted for labels in (truth, found)]
    return surface_scores(pair[0], pair[1], spacing, tolerance_mm)


def write_scores(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows of COLUMNS; an undefined value is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        value = float(row["value"])
        writer.writerow({**row, "value": "" if math.isnan(value) else repr(value)})
    write_text(text.getvalue(), path)


def join_scores(cells: Iterable[Cell], comparison: Path) -> Path:
    """Write the comparison's scores.csv from those of the given finished cells; returns its path."""
    parts = []
    for cell in cells:
        lines = (cell.folder(comparison) / SCORES).read_text(encoding="utf-8").splitlines()
        parts += lines[1:]
    path = comparison / SCORES
    write_text("\n".join([",".join(COLUMNS), *parts, ""]), path)
    return path
