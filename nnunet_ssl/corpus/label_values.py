"""Label maps that were found beside images, for nnU-Net's place in dataset.json: which values are in them, and their names."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import dirname, isfile, join

import numpy as np
import pandas as pd

from nnunet_ssl.corpus.reader import CorpusReader, ending_of
from nnunet_ssl.corpus.reading import describe_failure
from nnunet_ssl.errors import BadFile, CorpusError
from nnunet_ssl.files.entering import read_json


def require_labels(table: pd.DataFrame, num_threads: int) -> dict[str, int]:
    """{name: value} as dataset.json has it, of all label maps in the table's column `label`; reads each of them.

    Names come from a dataset.json beside the folder of labels (Medical Decathlon, nnU-Net 1 and 2), else they are label_1, ...
    Raises CorpusError where there are none, where some cannot be labels, or where nnU-Net could not use them.
    """
    rows = table[table["label"].notna()]
    if not len(rows):
        raise CorpusError("--with-labels: no image has a label map that belongs to it alone. Import without the flag.")
    ending = ending_of(str(table["path"].iloc[0]))
    others = [path for path in rows["label"] if ending_of(str(path)) != ending]
    if others:
        raise CorpusError(
            f"--with-labels: images end in {ending}, {len(others)} label maps do not, e.g. {others[0]}. nnU-Net wants "
            "one ending for all."
        )
    paths = rows["label"].astype(str).tolist()
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        found = list(pool.map(_values, paths))
    bad = [f"  {path}: {values}" for path, values in zip(paths, found, strict=True) if isinstance(values, str)]
    if bad:
        raise CorpusError(f"--with-labels: {len(bad)} label maps cannot be used:\n" + "\n".join(bad[:100]))
    present = sorted({int(v) for values in found if not isinstance(values, str) for v in values} | {0})
    if present != list(range(len(present))):
        raise CorpusError(
            f"--with-labels: the values are {', '.join(map(str, present[:20]))}; nnU-Net wants 0, 1, 2, ... without gaps. "
            "Renumber them, or import without the flag."
        )
    names = _names(paths, len(present))
    return {names.get(value, "background" if value == 0 else f"label_{value}"): value for value in present}


def _values(path: str) -> np.ndarray | str:
    """The values in a label map, or why it is none."""
    try:
        values = np.unique(CorpusReader().read_seg(path)[0])
    except Exception as error:  # every library has its own ways to fail on a broken file
        return describe_failure(error)
    return (
        values
        if (values == np.round(values)).all() and values[0] >= 0
        else "holds values that are no whole numbers from 0 on"
    )


def _names(paths: Sequence[str], number: int) -> dict[int, str]:
    """{value: name} by the dataset.json above the labels, where it names at least as many."""
    file = join(dirname(dirname(paths[0])), "dataset.json")
    if not isfile(file):
        return {}
    try:
        labels = read_json(file).get("labels")
    except (BadFile, AttributeError):
        return {}
    if not isinstance(labels, dict):
        return {}
    pairs = [(k, v) if str(k).isdecimal() else (v, k) for k, v in labels.items()]
    names = {int(value): str(name) for value, name in pairs if str(value).isdecimal()}
    fits = set(range(number)) <= names.keys() and len(set(names.values())) == len(names)
    return {value: "background" if value == 0 else name for value, name in names.items()} if fits else {}
