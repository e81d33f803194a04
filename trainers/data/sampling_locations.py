"""Where the voxels of a label are, from the store that nnU-Net's development branch writes beside the preprocessed cases.

nnU-Net 2.8 notes them in each case's .pkl as `class_locations`. Later on a folder of preprocessed cases has one folder
`fg_sampling` for all of them, with the files `meta.json` (version, `identifiers`, `class_keys`; written last),
`locations.b2nd` (flat voxel numbers of all cases, one after the other), `indptr.npy` (rows of a case in the next two),
`class_id.npy` and `count.npy` (label and number of its voxels), `base.npy` (where a case begins in the locations) and `shape.npy`
(voxels per axis of a case).
"""

from __future__ import annotations

from functools import cached_property
from os.path import isfile, join
from typing import Any

import blosc2
import numpy as np

from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.planners.sharing.finished import SAMPLING

VERSION = 1
INDEX = ("indptr", "class_id", "count", "base", "shape")


class SamplingLocations:
    """The store of a folder; nothing of it is opened before it is asked for, by the process that asks."""

    def __init__(self, folder: str) -> None:
        self.folder = join(folder, SAMPLING)
        self.is_there = isfile(join(self.folder, "meta.json"))

    def of(self, case: str, label: int) -> np.ndarray | None:
        """Voxels [N, 3] of a label in a case; None where the store knows no such case, or the case has no such label."""
        row = self._meta["rows"].get(case)
        if row is None or label not in self._meta["labels"]:
            return None
        first, last = (int(n) for n in self._index["indptr"][row : row + 2])
        counts = self._index["count"][first:last].astype(np.int64)
        (found,) = np.nonzero(self._index["class_id"][first:last] == self._meta["labels"].index(label))
        if not len(found):
            return None
        start = int(self._index["base"][row] + counts[: found[0]].sum())
        flat = np.asarray(self._locations[start : start + int(counts[found[0]])]).astype(np.int64)
        return np.stack(np.unravel_index(flat, tuple(int(n) for n in self._index["shape"][row])), axis=1)

    @cached_property
    def _meta(self) -> dict[str, Any]:
        content = read_json(join(self.folder, "meta.json"))
        if content.get("version") != VERSION:
            raise CorpusError(
                f"{self.folder} is of version {content.get('version')}, and this nnunet_ssl reads version {VERSION}. "
                "pip install --upgrade nnunet_ssl, or remove that folder: patches are then taken anywhere in the image.",
                path=self.folder,
                expected=VERSION,
                found=content.get("version"),
            )
        return {"rows": {case: n for n, case in enumerate(content["identifiers"])}, "labels": content["class_keys"]}

    @cached_property
    def _index(self) -> dict[str, np.ndarray]:
        return {name: np.load(join(self.folder, f"{name}.npy"), allow_pickle=False) for name in INDEX}

    @cached_property
    def _locations(self) -> Any:
        return blosc2.open(urlpath=join(self.folder, "locations.b2nd"), mode="r", dparams={"nthreads": 1})
