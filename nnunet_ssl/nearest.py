"""Which known name somebody meant who typed one that is not known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

CUTOFF = 0.65  # difflib's ratio, from which a name is worth asking about


def nearest(name: str, known: Iterable[str], cutoff: float = CUTOFF) -> str | None:
    """The known name most like `name`, None where none is like it. Case, dashes, dots and underscores make no difference."""
    plain = {_plain(other): other for other in known}
    found = difflib.get_close_matches(_plain(name), list(plain), n=1, cutoff=cutoff)
    return plain[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str], cutoff: float = CUTOFF) -> str:
    """The text " Did you mean mae?", to stand behind a sentence, or an empty text."""
    near = nearest(name, known, cutoff)
    return f" Did you mean {near}?" if near else ""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
