"""Take out of a checkpoint what tells about its author's machine and patients rather than about the network."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from torch import Tensor

# An absolute path on any system, alone or within a text; URLs and fractions such as 1/2 are none.
PATH = re.compile(
    r"(?:^|[\s\"'=:,;(\[])(?:/|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\)(?![\s/])[^\s/\\]*(?:[/\\]|$)|file://", re.ASCII
)

# What nnU-Net needs of a dataset.json at prediction, and what describes the data set without naming a case.
DATASET_JSON = (
    "channel_names",
    "modality",
    "labels",
    "regions_class_order",
    "file_ending",
    "overwrite_image_reader_writer",
    "numTraining",
    "licence",
    "license",
)
FINGERPRINT = (
    "spacings",
    "shapes_after_crop",
    "foreground_intensity_properties_per_channel",
    "median_relative_size_after_cropping",
)
INIT_ARGS = ("plans", "plan", "configuration", "configuration_name", "fold")


class Scrubber:
    """Copies plain data without paths, and remembers in `removed` where it found any."""

    def __init__(self) -> None:
        self.removed: list[str] = []

    def __call__(self, value: Any, where: str = "") -> Any:
        """A copy with lists for tuples, without entries whose key or text holds an absolute path."""
        if isinstance(value, Mapping):
            kept = {}
            for key, item in value.items():
                place = f"{where}.{key}" if where else str(key)
                if _is_private(key):
                    self.removed.append(f"an entry of {where}")
                elif _is_private(item):
                    self.removed.append(place)
                else:
                    kept[str(key)] = self(item, place)
            return kept
        if isinstance(value, (list, tuple)):
            items = [item for item in value if not _is_private(item)]
            if len(items) < len(value):
                self.removed.append(f"{len(value) - len(items)} entries of {where}")
            return [self(item, where) for item in items]
        if isinstance(value, Tensor):
            return value
        if hasattr(value, "tolist"):  # numpy
            return self(value.tolist(), where)
        if isinstance(value, float) and not isfinite(value):
            return None  # JSON knows neither NaN nor infinity
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        return str(value)

    def keep(self, value: Any, known: tuple[str, ...], where: str) -> dict[str, Any]:
        """The `known` entries of a mapping, cleaned; everything else counts as removed."""
        mapping = value if isinstance(value, Mapping) else {}
        self.removed += [f"{where}.{key}" for key in mapping if key not in known]
        return self({key: mapping[key] for key in known if key in mapping}, where)


def _is_private(value: Any) -> bool:
    return isinstance(value, os.PathLike) or (isinstance(value, str) and PATH.search(value) is not None)
