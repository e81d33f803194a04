"""pretrain_data.json, nnssl's description of a corpus: read and written (nnssl, documentation/dataset_format.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os.path import abspath, basename, dirname
from typing import Any

import pandas as pd

from nnunet_ssl.corpus.images import absolute_path
from nnunet_ssl.corpus.reader import ending_of
from nnunet_ssl.corpus.sources.csv_table import check_rows
from nnunet_ssl.corpus.sources.found import Found, Mistake, frame
from nnunet_ssl.corpus.table import COLUMNS
from nnunet_ssl.errors import BadFile, CorpusError
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json

SUBJECT_INFO = ("age", "sex", "handedness", "race", "weight", "bmi", "health_status")
MASKS = {"anatomy_mask": "anatomy_mask", "anonymization_mask": "anonymisation_mask"}
EXAMPLE = '{"collection_index": 1, "collection_name": "...", "datasets": {"1": {"subjects": {...}}}}'


def find_in_pretrain_data(source: str) -> Found:
    """The images of a pretrain_data.json; paths may begin with $VARIABLES. Everything wrong in it is a mistake.

    subject_info, session_info and image_info become columns; so does OpenMind's image_quality_score, as `iqs`. Raises
    CorpusError when it is not such a file.
    """
    try:
        content = read_json(source)
    except BadFile as error:
        raise CorpusError(f"{error}. Expected {EXAMPLE}") from error
    if not isinstance(content, dict) or not isinstance(content.get("datasets"), dict):
        raise CorpusError(f"{source} has no datasets; expected {EXAMPLE}")
    rows: list[dict[str, Any]] = []
    mistakes: list[Mistake] = []
    for dataset_key, dataset in _items(content, "datasets", basename(source), mistakes):
        scores = _scores(dataset)
        for subject_key, subject in _items(dataset, "subjects", f"dataset {dataset_key}", mistakes):
            place = f"dataset {dataset_key}, subject {subject_key}"
            for session_key, session in _items(subject, "sessions", place, mistakes):
                where = f"{place}, session {session_key}"
                images = session.get("images")
                if not isinstance(images, list):
                    mistakes.append(Mistake(where, "images is missing, expected a list"))
                    continue
                shared = {
                    **_info(subject, "subject_info"),
                    **_info(session, "session_info"),
                    "dataset": str(dataset_key),
                    "subject": str(subject_key),
                    "session": str(session_key),
                }
                for number, image in enumerate(images):
                    row = _row(image, f"{where}, image {number + 1}", dirname(abspath(source)), mistakes)
                    if row is not None:
                        row |= shared
                        row["name"] = "__".join([str(dataset_key), str(subject_key), str(session_key), row["name"]])
                        score = scores.get((row["modality"], row.get("derived_from")))
                        rows.append(row if score is None else {**row, "iqs": score})
    return check_rows(frame(rows), mistakes)


def write_pretrain_data(table: pd.DataFrame, name: str, path: str) -> list[str]:
    """Write a table as pretrain_data.json; returns the cases that this format cannot hold: volumes of series, channels."""
    unfit = table["volume"].notna() | (table["channels"].fillna(1) > 1)
    further = [column for column in table.columns if column not in COLUMNS]
    about_subject = [column for column in further if column in SUBJECT_INFO]
    about_image = [column for column in further if column not in (*SUBJECT_INFO, "iqs")]
    datasets: dict[str, Any] = {}
    for row in table[~unfit].to_dict("records"):
        present = {key: _plain(value) for key, value in row.items() if not pd.isna(value)}
        key = str(present.get("dataset", name))
        dataset = datasets.setdefault(key, {"dataset_index": key, "name": key, "dataset_info": {}, "subjects": {}})
        subject_id, session_id = present.get("subject", present["case"]), present.get("session", "ses-DEFAULT")
        info = {column: present[column] for column in about_subject if column in present}
        subject = dataset["subjects"].setdefault(
            subject_id, {"subject_id": subject_id, "subject_info": info, "sessions": {}}
        )
        session = subject["sessions"].setdefault(
            session_id, {"session_id": session_id, "session_info": {}, "images": []}
        )
        masks = {theirs: present.get(ours) for theirs, ours in MASKS.items()}
        session["images"].append(
            {
                "name": present["case"] + (ending_of(present["path"]) or ""),
                "modality": present.get("modality", "unknown"),
                "image_info": {column: present[column] for column in about_image if column in present},
                "image_path": present["path"],
                "associated_masks": masks if any(masks.values()) else None,
            }
        )
        if "iqs" in present:
            scores = dataset["dataset_info"].setdefault("image_quality_score", {})
            scores[present.get("modality", "unknown"), present.get("derived_from")] = present["iqs"]
    for dataset in datasets.values():
        scores = dataset["dataset_info"].get("image_quality_score", {})
        if scores:
            dataset["dataset_info"]["image_quality_score"] = [
                {"modality": m, "derived_from": d, "image_quality_score": score} for (m, d), score in scores.items()
            ]
    write_json({"collection_index": 1, "collection_name": name, "datasets": datasets}, path)
    return table.loc[unfit, "case"].tolist()


def _items(parent: Any, key: str, where: str, mistakes: list[Mistake]) -> list[tuple[str, Mapping[str, Any]]]:
    children = parent.get(key)
    if not isinstance(children, dict):
        mistakes.append(Mistake(where, f"{key} is missing, expected an object"))
        return []
    wrong = [name for name, child in children.items() if not isinstance(child, dict)]
    mistakes += [Mistake(where, f"{key}[{name!r}] is no object") for name in wrong]
    return [(name, child) for name, child in children.items() if name not in wrong]


def _row(image: Any, where: str, folder: str, mistakes: list[Mistake]) -> dict[str, Any] | None:
    wanted = ("name", "modality", "image_path")
    absent = [key for key in wanted if not isinstance(image, dict) or not isinstance(image.get(key), str)]
    if absent:
        mistakes.append(Mistake(where, f"{', '.join(absent)} is missing, expected text"))
        return None
    masks = image.get("associated_masks") or {}
    paths = {"path": image["image_path"]} | {ours: masks[theirs] for theirs, ours in MASKS.items() if masks.get(theirs)}
    variables = [path.split("/")[0][1:] for path in paths.values() if path.startswith("$")]
    unset = sorted({name for name in variables if name.strip("{}") not in os.environ})
    if unset:
        mistakes.append(Mistake(where, f"the environment variable {', '.join(unset)} is not set"))
        return None
    name = image["name"]
    return {
        **_info(image, "image_info"),
        **{column: absolute_path(path, folder) for column, path in paths.items()},
        "name": name[: -len(ending_of(name) or "")] if ending_of(name) else name,
        "modality": image["modality"],
        "where": where,
    }


def _info(entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The plain values of an info object, under names that do not hide the table's own columns."""
    content = entry.get(key)
    values = content.items() if isinstance(content, dict) else ()
    plain = {name: value for name, value in values if isinstance(value, (str, int, float, bool))}
    return {f"{key}_{name}" if name in COLUMNS else name: value for name, value in plain.items()}


def _scores(dataset: Mapping[str, Any]) -> dict[tuple[str, str | None], float]:
    info = dataset.get("dataset_info")
    entries = info.get("image_quality_score") if isinstance(info, dict) else None
    return {
        (entry["modality"], entry.get("derived_from")): entry["image_quality_score"]
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and entry.get("image_quality_score") is not None and "modality" in entry
    }


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
