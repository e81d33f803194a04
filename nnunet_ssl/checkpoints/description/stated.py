"""Read what a checkpoint says about itself; a file's word is checked before it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_ssl.errors import CheckpointError

LARGEST = 100_000  # voxels, channels, heads: beyond this a number is a mistake
MOST_CHANNELS = 1000


def text(value: Any) -> str | None:
    """A short text, or None for anything else."""
    return value if isinstance(value, str) and 0 < len(value) <= 200 else None


def whole_number(mapping: Mapping[str, Any], key: str) -> int | None:
    """The number under `key`, None where there is none; raises CheckpointError when it is none of 1 to 100,000."""
    value = mapping.get(key)
    return None if value is None else _number(value, key, value)


def dimensions(mapping: Any, key: str) -> list[int] | None:
    """The 2 or 3 sizes (voxels) under `key`, None where there are none; raises CheckpointError for anything else."""
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) not in (2, 3):
        raise _senseless(key, value, "2 or 3 whole numbers")
    return [_number(size, key, value) for size in value]


def channel_names(checkpoint: Mapping[str, Any]) -> list[str] | None:
    """Names of the image channels a network was trained on, in order: from our `ssl` block or nnU-Net's dataset.json."""
    ssl, arguments = checkpoint.get("ssl"), checkpoint.get("init_args")
    if isinstance(ssl, Mapping) and isinstance(ssl.get("channel_names"), (list, tuple)):
        return _names(list(ssl["channel_names"]))
    dataset = arguments.get("dataset_json") if isinstance(arguments, Mapping) else None
    if not isinstance(dataset, Mapping):
        return None
    return channels_of_dataset(dataset.get("channel_names")) or channels_of_dataset(dataset.get("modality"))


def channels_of_dataset(names: Any) -> list[str] | None:
    """The names in a dataset.json's `channel_names` ({"0": "T1", ...}) in order, None where they are not given so."""
    if not isinstance(names, Mapping) or len(names) > MOST_CHANNELS:
        return None
    by_number = {str(key): name for key, name in names.items()}
    if set(by_number) != {str(number) for number in range(len(by_number))}:
        return None
    return _names([by_number[str(number)] for number in range(len(by_number))])


def _names(values: list[Any]) -> list[str] | None:
    names = [name for value in values if (name := text(value))]
    return names if names and len(names) == len(values) else None


def _number(value: Any, key: str, whole: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise _senseless(key, whole, f"whole numbers from 1 to {LARGEST:,}")
    return value


def _senseless(key: str, value: Any, expected: str) -> CheckpointError:
    shown = repr(value)[:80] if isinstance(value, (int, float, str, list, tuple)) else type(value).__name__
    return CheckpointError(f"The checkpoint says that its {key} is {shown}. Expected {expected}: the file is damaged.")
