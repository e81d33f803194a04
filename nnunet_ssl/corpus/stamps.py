"""By what a file is known again without reading it: size and time of change; and by its content, where these differ."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from nnunet_ssl.corpus.address import files_of

BLOCK = 2**20  # bytes read at a time
NUM_THREADS = 16  # a server answers many at once; a local disk answers one in microseconds
PART = 500  # files asked for by one thread in turn
MISSING = (-1, -1)

Stamp = tuple[int, int]  # bytes, time of change [ns]; equal or not: which is newer means nothing


def stamps_of(addresses: Iterable[str | None]) -> list[int]:
    """The numbers of the stamps of the files behind addresses (nnunet_ssl.corpus.address), one after the other."""
    return [n for address in addresses if address is not None for file in files_of(address) for n in stamp(file)]


def stamp(file: str) -> Stamp:
    """The stamp of one file, MISSING where there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return MISSING
    return found.st_size, found.st_mtime_ns


def all_stamps(addresses: Sequence[Sequence[str | None]]) -> list[list[int]]:
    """`stamps_of` each, by many threads."""
    parts = [addresses[start : start + PART] for start in range(0, len(addresses), PART)]
    with ThreadPoolExecutor(min(NUM_THREADS, max(1, len(parts)))) as pool:
        return [stamps for part in pool.map(lambda part: [stamps_of(a) for a in part], parts) for stamps in part]


def digest_of(addresses: Iterable[str | None]) -> str:
    """32 characters that stand for the content of the files behind addresses; empty where one cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        for address in addresses:
            for file in files_of(address) if address is not None else ():
                with open(file, "rb") as opened:
                    while block := opened.read(BLOCK):
                        digest.update(block)
                digest.update(b"\0end")
    except OSError:
        return ""
    return digest.hexdigest()
