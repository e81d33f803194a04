"""Case names: safe as file names everywhere, unique, and the same every time."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

MAX_LENGTH = 120
# nnU-Net keeps the segmentation of `case` in `case_seg.b2nd`: no case may be called like that.
FORBIDDEN_END = "_seg"


def safe_name(text: str) -> str:
    """`text` with letters, digits and `._+-` only; umlauts and accents become their base letters."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", plain).strip("-. ")
    if name.endswith(FORBIDDEN_END):
        name += "-image"
    return name


def assign_names(suggested: Sequence[str], keys: Sequence[str], taken: Iterable[str]) -> list[str]:
    """A case name for every image: the suggestion made safe, with a hash of the image's key where that is not unique.

    The keys are unique, so the names are, also on file systems that do not tell upper from lower case, and they do not
    depend on the order of the images.
    """
    safe = [safe_name(text) for text in suggested]
    counts = Counter(name.casefold() for name in safe)
    occupied = {name.casefold() for name in taken}
    names = []
    for name, key in zip(safe, keys, strict=True):
        unique = counts[name.casefold()] == 1 and name.casefold() not in occupied
        if not unique or not name or len(name) > MAX_LENGTH:
            name = f"{name[:MAX_LENGTH] or 'image'}_{digest(key)}"
        names.append(name)
    return names


def digest(key: str) -> str:
    """Ten characters that stand for `key`."""
    return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=5).hexdigest()
