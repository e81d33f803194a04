"""JSON files that a kill, a full disk or a power cut left in the middle, in times when they were not written whole."""

from __future__ import annotations

import os
from os.path import isfile


def is_torn(path: str) -> bool:
    """Whether a file that should hold a JSON object or list does not end like one. Mistakes within it are no tears."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 64))
        return not file.read().rstrip().endswith((b"}", b"]"))


def is_whole(path: str) -> bool:
    """Whether a JSON file is there, whole; one that is torn is removed, saying so, to be made anew."""
    if not isfile(path):
        return False
    if not is_torn(path):
        return True
    print(f"{path} ends in the middle, as after a kill or on a full disk. It is made anew.", flush=True)
    os.remove(path)
    return False
