"""The cases that gained and lost most, with pictures of truth and predictions where both are at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import isfile, join
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nnunet_ssl.corpus.datasets import raw_folder
from nnunet_ssl.corpus.images import list_images, read_dataset_json
from nnunet_ssl.errors import NnunetSSLError
from nnunet_ssl.report.comparison.differences import lower_is_better
from nnunet_ssl.report.comparison.folder import Cell, Comparison, prepared
from nnunet_ssl.report.geometry import Geometry
from nnunet_ssl.report.orientation import codes_of
from nnunet_ssl.report.overlays import draw_overlay

PREDICTIONS = "predictions"
MAX_PICTURES = 24  # so that the page of a dozen data sets stays below some ten megabytes


@dataclass(frozen=True)
class Extreme:
    """The case of a data set that an arm changed most for the better or the worse; `difference`: arm minus reference."""

    dataset: str
    labelled: str
    arm: str
    case: str
    difference: float
    gained: bool


def extremes(rows: Sequence[Mapping[str, Any]], arms: Sequence[str], metric: str) -> list[Extreme]:
    """Per data set the case with the largest gain and the one with the largest loss among these arms.

    rows: of `all_differences`; those with most labelled cases count, which come last.
    """
    found = []
    sign = -1 if lower_is_better(metric) else 1
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset and row["arm"] in arms and row["cases"]]
        if not own:
            continue
        number = own[-1]["labelled"]
        changes = [
            Extreme(dataset, number, row["arm"], case, difference, sign * difference > 0)
            for row in own
            if row["labelled"] == number
            for case, difference in row["by_case"].items()
        ]
        for gained, choose in ((True, max), (False, min)):
            candidates = [change for change in changes if change.gained == gained and change.difference != 0]
            if candidates:
                found.append(choose(candidates, key=lambda change: sign * change.difference))
    return found


def draw_case(comparison: Comparison, extreme: Extreme) -> tuple[bytes, str] | str:
    """The picture of a case (PNG) and the run it is from, or in a sentence why there is none."""
    try:
        return _draw(comparison, extreme)
    except (NnunetSSLError, OSError, RuntimeError, ValueError) as error:
        return f"{extreme.case}: no picture. {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def _draw(comparison: Comparison, extreme: Extreme) -> tuple[bytes, str] | str:
    found = _prepared(comparison, extreme) or _raw(extreme)
    if found is None:
        return f"{extreme.case}: no picture, because its image or its labels are not in nnUNet_raw ({extreme.dataset})."
    dataset_json, image, truth = found
    ending = str(dataset_json["file_ending"])
    cells = _cells(comparison, extreme, f"{extreme.case}{ending}")
    if not cells:
        return f"{extreme.case}: no picture, because its predictions were not kept."
    reader = _reader(dataset_json, image)
    picture, noted = reader.read_images([image])
    files = {"truth": truth}
    files |= {arm: str(cell.folder / PREDICTIONS / f"{extreme.case}{ending}") for arm, cell in cells.items()}
    maps = {name: _flat(reader.read_seg(file)[0][0]) for name, file in files.items()}
    grey = _flat(picture[0])
    codes, spacing = codes_of(noted, (0, 1, 2)), tuple(float(s) for s in noted["spacing"])
    geometry = Geometry(codes, spacing) if grey.ndim == 3 else Geometry(None, spacing[1:])
    with TemporaryDirectory() as place:
        file = Path(place, "case.png")
        draw_overlay(grey, maps, file, extreme.case, geometry, _label_names(dataset_json))
        key = next(iter(cells.values())).key
        return file.read_bytes(), f"fold {key.fold}, seed {key.seed}"


def _flat(array: np.ndarray) -> np.ndarray:
    """[*spatial]; nnU-Net reads 2D files as volumes of one slice."""
    return array[0] if array.ndim == 3 and array.shape[0] == 1 else array


def _cells(comparison: Comparison, extreme: Extreme, name: str) -> dict[str, Cell]:
    """The first run in which both the reference and the arm have kept their prediction of a case."""
    arms = (comparison.reference, extreme.arm)
    found: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in comparison.finished():
        key = cell.key
        wanted = (key.dataset, key.labelled) == (extreme.dataset, extreme.labelled) and key.arm in arms
        if wanted and (cell.folder / PREDICTIONS / name).is_file():
            found.setdefault((key.fold, key.seed), {})[key.arm] = cell
    both = next((cells for cells in found.values() if len(cells) == len(arms)), {})
    return {arm: both[arm] for arm in arms if arm in both}


def _prepared(comparison: Comparison, extreme: Extreme) -> tuple[Mapping[str, Any], str, str] | None:
    """dataset.json, first channel and labels of a case, as the comparison noted where they are; None where they are not."""
    noted = prepared(comparison, extreme.dataset)
    if not isinstance(noted.get("dataset_json"), dict):
        return None
    images = (noted.get("images") or {}).get(extreme.case) or [""]
    truth = join(
        str(noted.get("base")), "gt_segmentations", f"{extreme.case}{noted['dataset_json'].get('file_ending')}"
    )
    return (noted["dataset_json"], str(images[0]), truth) if isfile(str(images[0])) and isfile(truth) else None


def _raw(extreme: Extreme) -> tuple[Mapping[str, Any], str, str] | None:
    """The same from nnUNet_raw, from the training or the test part of the data set."""
    folder = raw_folder(extreme.dataset)
    if folder is None:
        return None
    dataset_json = read_dataset_json(folder)
    entry = list_images(folder, dataset_json).get(extreme.case)
    if entry is not None:
        return (dataset_json, entry["images"][0], entry["label"]) if entry["label"] else None
    ending = str(dataset_json["file_ending"])
    image, truth = (
        join(folder, *name)
        for name in (("imagesTs", f"{extreme.case}_0000{ending}"), ("labelsTs", f"{extreme.case}{ending}"))
    )
    return (dataset_json, image, truth) if isfile(image) and isfile(truth) else None


def _reader(dataset_json: Mapping[str, Any], image: str) -> Any:
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    return determine_reader_writer_from_dataset_json(dict(dataset_json), image, verbose=False)()


def _label_names(dataset_json: Mapping[str, Any]) -> dict[int, str]:
    """Names of labels; regions, which are several labels each, name none."""
    labels = dataset_json.get("labels") or {}
    return {value: str(name) for name, value in labels.items() if isinstance(value, int)}
