"""Files of others, before they are opened and while they are read: what is no file, is none of ours, or has no end."""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any

from nnunet_ssl.errors import BadFile

Where = str | os.PathLike[str]

MAX_BYTES = 1 << 30  # of a JSON file; the dataset.json of a million images has 300 MB
MAX_DEPTH = 100  # of objects within objects; nothing that nnU-Net, BIDS or nnssl write has more than 12
SMALL = 1024  # bytes: a pointer is smaller, an image is not
SORTS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def why_no_file(path: Where) -> str | None:
    """Why a path names no file that can be read, None when it does. Opens nothing: to open a pipe would wait for ever."""
    try:
        state = os.stat(path)
    except OSError as error:
        return _why_not_there(path, error)
    for is_one, name in SORTS:
        if is_one(state.st_mode):
            return f"{name}, not a file"
    return None if os.access(path, os.R_OK) else "you may not read this file"


def _why_not_there(path: Where, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "a link that leads back to itself"
    if os.path.islink(path):
        target = os.readlink(path)
        hint = ". Fetch the content first, e.g. datalad get" if ".git/annex" in target else ""
        return f"a link that points nowhere, to {target}{hint}"
    if isinstance(error, PermissionError):
        return "you may not look into its folder"
    return (
        "there is no such file" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else str(error.strerror)
    )


def why_no_content(path: Where) -> str | None:
    """What stands in a file's place: nothing, a pointer to it, the page of a failed download; None for anything else."""
    if os.path.getsize(path) == 0:
        return "empty: 0 bytes"
    if os.path.getsize(path) >= SMALL and not str(path).lower().endswith(".gz"):
        return None
    with open(path, "rb") as file:
        start = file.read(SMALL).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself. Fetch it first: git lfs pull"
    if b"annex/objects/" in start and start.count(b"\n") <= 2:
        return "a pointer of git-annex, not the file itself. Fetch it first: git annex get, or datalad get"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, not the file itself: the download failed"
    return None


def read_json(path: Where, max_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file; raises BadFile for one that is no file, no JSON, not UTF-8, too large or too deep."""
    reason = why_no_file(path) or why_no_content(path)
    if reason is not None:
        raise BadFile(f"{os.fspath(path)}: {reason}")
    if os.path.getsize(path) > max_bytes:
        raise BadFile(f"{os.fspath(path)}: {os.path.getsize(path):,} bytes, at most {max_bytes:,} are read as JSON")
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadFile(
            f"{os.fspath(path)}: not in UTF-8, byte {error.start + 1} is {error.object[error.start]:#04x}"
        ) from error
    except RecursionError as error:
        raise BadFile(f"{os.fspath(path)}: nested more than {MAX_DEPTH} deep") from error
    except ValueError as error:
        raise BadFile(f"{os.fspath(path)}: not valid JSON: {error}") from error
    except OSError as error:
        raise BadFile(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error
    if _deeper_than(content, MAX_DEPTH):
        raise BadFile(f"{os.fspath(path)}: nested more than {MAX_DEPTH} deep")
    return content


def _deeper_than(content: Any, depth: int) -> bool:
    """Whether lists and objects lie more than `depth` deep in each other; level by level, because they may."""
    level = [content]
    for _ in range(depth + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True
