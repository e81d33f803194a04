"""How dataset.json names one volume of a series, or masks that together are a segmentation.

nnU-Net hands the texts in dataset.json to its reader as they are. A plain path means the file. `<file>::volume=3` is one
volume of a 4-D file, `<file>::volume=mean` the mean of all. `<file>::anatomy`, `<file>::anonymised` and the two joined by
`|` are masks: labels 1 and 2 of one segmentation. CorpusReader understands all of them.
"""

from __future__ import annotations

import re

MEAN = "mean"
_VOLUME = re.compile(r"(?P<file>.+)::volume=(?P<volume>mean|\d+)", re.DOTALL)
_MASKS = re.compile(r"(?:(?P<anatomy>.+?)::anatomy(?:\||$))?(?:(?P<anonymised>.+)::anonymised)?", re.DOTALL)


def volume_address(file: str, volume: str | None) -> str:
    """The address of a volume ("0", "1", ..., "mean") of a 4-D file, or of a whole file."""
    return file if volume is None else f"{file}::volume={volume}"


def split_volume(address: str) -> tuple[str, str | None]:
    """(file, volume or None) of an image's address."""
    match = _VOLUME.fullmatch(address)
    return (match["file"], match["volume"]) if match else (address, None)


def mask_address(anatomy: str | None, anonymised: str | None) -> str | None:
    """The address of the segmentation that the masks make up, None without masks."""
    parts = [f"{file}::{role}" for role, file in (("anatomy", anatomy), ("anonymised", anonymised)) if file]
    return "|".join(parts) or None


def split_masks(address: str) -> dict[str, str]:
    """{"anatomy": file, "anonymised": file} of a segmentation's address; empty for a plain label file."""
    match = _MASKS.fullmatch(address)
    return {role: file for role, file in match.groupdict().items() if file} if match else {}


def files_of(address: str) -> list[str]:
    """The files behind an address of either kind."""
    if "::" not in address:
        return [address]
    return list(split_masks(address).values()) or [split_volume(address)[0]]
