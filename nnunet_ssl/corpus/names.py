"""Case names: what they may be at all, and names for images that have none: safe everywhere, unique, always the same.

A case's name becomes the name of files: of what is preprocessed, of claims, labels, predictions and pictures. Wherever
names come in from outside (dataset.json, imagesTr, tables, splits, preprocessed folders, the command line) they pass
`require_case_names`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from nnunet_ssl.errors import CorpusError

MAX_LENGTH = 120  # of names made here
MAX_BYTES = 200  # of any; with endings and temporary names, file systems take 255
NUM_SHOWN = 100  # bad names in an error message
# nnU-Net keeps the segmentation of `case` in `case_seg.b2nd`: no case may be called like that.
FORBIDDEN_END = "_seg"
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE | re.DOTALL)
# What nearly all are like; of 100,000 names each is looked at in less than a microsecond.
_ORDINARY = re.compile(
    rf"(?!{_DEVICES.pattern}\Z)[a-z0-9_+-](?:[a-z0-9._+ -]{{0,100}}[a-z0-9_+-])?(?<!{FORBIDDEN_END})",
    re.IGNORECASE | re.ASCII,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def reason_against(name: object) -> str | None:
    """Why a case cannot be called so, None when it can."""
    if isinstance(name, str) and name.casefold().endswith(FORBIDDEN_END):
        return f"ends in {FORBIDDEN_END}: that is how nnU-Net calls the label map of {name[: -len(FORBIDDEN_END)]!r}"
    return reason_against_file(name)


def reason_against_file(name: object) -> str | None:
    """Why nothing of ours can be called so, None when it can: no path, and the same on every system."""
    if not isinstance(name, str) or not name:
        return "no text" if not isinstance(name, str) else "empty"
    if _CONTROL.search(name):
        return "holds a control character"
    if "/" in name or "\\" in name:
        return "holds a path separator"
    if name.startswith((".", "~")):
        return f"begins with {name[0]!r}"
    if "$" in name:
        return "holds '$', which nnU-Net takes for the beginning of an environment variable"
    if name.endswith((".", " ")) or name.startswith(" ") or _DEVICES.fullmatch(name):
        return "is no file name on Windows"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    return f"has {length} bytes, {MAX_BYTES} are allowed" if length > MAX_BYTES else None


def require_case_names(names: Iterable[object], where: str, remedy: str = "") -> None:
    """Raise CorpusError listing all `names` that no case may have, or that some file systems take for one another.

    `where` they were found, and what to do if not the usual.
    """
    bad = bad_case_names(names)
    if not bad:
        return
    lines = [f"  {name!r}: {reason}" for name, reason in bad[:NUM_SHOWN]]
    lines += [f"  ... and {len(bad) - NUM_SHOWN} more"] if len(bad) > NUM_SHOWN else []
    how = remedy or (
        "Rename them (a case's images and its label alike, and its entry in dataset.json), or have new names made, without "
        "copies: nnUNetv2_pretrain_import"
    )
    raise CorpusError(f"{len(bad)} case names in {where} cannot be used:\n" + "\n".join(lines) + f"\n{how}")


def bad_case_names(names: Iterable[object]) -> list[tuple[object, str]]:
    """(name, reason) of the names that cannot be used, in their order."""
    bad: list[tuple[object, str]] = []
    first: dict[str, object] = {}
    for name in names:
        reason = None if isinstance(name, str) and _ORDINARY.fullmatch(name) else reason_against(name)
        if reason is None:
            assert isinstance(name, str)
            other = first.setdefault(name.lower() if name.isascii() else _alike(name), name)
            if other != name:
                reason = f"differs from {other!r} in upper and lower case, or in how letters are composed, only"
        if reason is not None:
            bad.append((name, reason))
    return bad


def safe_name(text: str) -> str:
    """`text` with letters, digits and `._+-` only; umlauts and accents become their base letters."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", plain).strip("-. ")
    if name.casefold().endswith(FORBIDDEN_END):
        return f"{name}-image"
    return f"image-{name}" if _DEVICES.fullmatch(name) else name


def _alike(name: str) -> str:
    """Key of a name; two that some file systems take for one another have the same."""
    return unicodedata.normalize("NFC", name).casefold()


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
