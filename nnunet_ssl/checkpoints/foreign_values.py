"""Values of foreign files, as what they shall be, or as nothing: whoever describes a file does not trust it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def text(value: Any) -> str | None:
    """The first 200 characters of a text that is not empty."""
    return value[:200] if isinstance(value, str) and value else None


def whole_number(value: Any, least: int, below: int) -> int | None:
    """The value where it is a whole number of that range."""
    return value if isinstance(value, int) and not isinstance(value, bool) and least <= value < below else None
