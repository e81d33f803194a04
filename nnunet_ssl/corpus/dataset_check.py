"""What is wrong with a dataset.json: said about the file, all at once, before an image is blamed for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def mistakes_in(content: Mapping[str, Any]) -> list[str]:
    """Everything in a dataset.json that nnU-Net 2 or this package could not use, and what it should be; a line each."""
    names = "channel_names" if content.get("channel_names") else "modality"
    found = [*_channels(names, content.get(names)), *_labels(content.get("labels"))]
    if "dataset" in content:
        found += _entries(content["dataset"])
    order = content.get("regions_class_order")
    if order is not None and not (isinstance(order, list) and all(_is_number(n) for n in order)):
        found.append(f'"regions_class_order" is {_short(order)}, expected a list of numbers, e.g. [1, 2]')
    reader = content.get("overwrite_image_reader_writer")
    if reader is not None and not isinstance(reader, str):
        found.append(f'"overwrite_image_reader_writer" is {_short(reader)}, expected a reader\'s name')
    return found


def _channels(key: str, channels: Any) -> Iterator[str]:
    expected = 'expected {"0": "T1w", "1": "FLAIR"}, numbered from 0'
    if channels is None or channels == {}:
        return  # whose absence is said elsewhere
    if isinstance(channels, list):
        proposal = {str(i): name for i, name in enumerate(channels)}
        yield f'"{key}" is a list, {expected}: {_short(proposal)}'
    elif not isinstance(channels, Mapping):
        yield f'"{key}" is {_short(channels)}, {expected}'
    elif list(channels) != [str(i) for i in range(len(channels))]:
        yield f'"{key}" has the keys {", ".join(map(str, channels))}, {expected}'
    elif not all(isinstance(name, str) and name for name in channels.values()):
        yield f'"{key}" has names that are no text: {_short(channels)}'


def _labels(labels: Any) -> Iterator[str]:
    expected = 'expected {"background": 0, "liver": 1}'
    if labels is None or labels == {}:
        return  # images without labels
    if not isinstance(labels, Mapping):
        yield f'"labels" is {_short(labels)}, {expected}'
        return
    if all(str(key).isdecimal() and isinstance(value, str) for key, value in labels.items()):
        proposal = {name: int(number) for number, name in labels.items()}
        yield f'"labels" is {{number: name}} as in nnU-Net 1; version 2 wants {{name: number}}: {_short(proposal)}'
        return
    wrong = [n for n, value in labels.items() if not (_is_number(value) or _is_region(value))]
    if wrong:
        yield f'"labels" has no number for {", ".join(wrong)}, {expected}; regions are lists of numbers'
    elif labels.get("background") != 0:
        yield f'"labels" has no background with number 0, {expected}'


def _entries(entries: Any) -> Iterator[str]:
    expected = 'expected {"case": {"images": ["path", ...], "label": "path"}}'
    if not isinstance(entries, Mapping):
        yield f'"dataset" is {_short(entries)}, {expected}'
        return
    wrong = [name for name, entry in entries.items() if not _is_entry(entry)]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        yield f'"dataset" names no images for {", ".join(map(repr, wrong[:3]))}{more}, {expected}'


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("label"), (str, type(None))):
        return False
    images = entry.get("images")
    return isinstance(images, list) and len(images) > 0 and all(isinstance(path, str) and path for path in images)


def _is_region(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_is_number(n) for n in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value).replace("'", '"')
    return text if len(text) <= 120 else f"{text[:117]}..."
