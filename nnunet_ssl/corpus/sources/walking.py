"""The files below a folder, each once, however its links are laid."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from os.path import abspath, basename, dirname, isdir, join, realpath

from nnunet_ssl.corpus.reader import ending_of


def walk_files(folder: str) -> Iterator[str]:
    """All files below a folder in order, through links too, hidden ones left alone.

    A folder that several links lead to, or that is within itself by a link, is walked once. A folder that is called like an
    image comes as if it was one, to be refused.
    """
    seen: set[str] = set()
    for where, folders, files in os.walk(abspath(folder), followlinks=True):
        real = realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        called_like_images = [f for f in folders if ending_of(f) and not f.startswith(".")]
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not ending_of(f))
        yield from (join(where, f) for f in sorted([*files, *called_like_images]) if not f.startswith("."))


def matching_files(pattern: str) -> list[str]:
    """What a glob matches, in order and without folders; once each, although ** follows links around 40 times."""
    found: dict[tuple[str, str], str] = {}
    folders: dict[str, str] = {}
    for path in sorted((abspath(f) for f in glob.iglob(pattern, recursive=True)), key=lambda f: (f.count(os.sep), f)):
        if isdir(path) and not ending_of(path):
            continue
        real = folders.setdefault(dirname(path), realpath(dirname(path)))
        found.setdefault((real, basename(path)), path)
    return sorted(found.values())
