"""A picture is no reason to end a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnunet_ssl.files.unwritable import explanation

_told: set[str] = set()  # kinds of errors this process has told of


def attempt_to_draw(
    warn: Callable[[str], None], draw: Callable[..., Any], *args: Any, what: str = "a picture cannot be drawn"
) -> None:
    """Call `draw(*args)`; whatever goes wrong is told to `warn`, once for each kind, and the work goes on.

    what: the beginning of that sentence.
    """
    try:
        draw(*args)
    except Exception as error:
        kind = f"{type(error).__name__} {getattr(error, 'errno', '')}"
        if kind not in _told:
            _told.add(kind)
            reason = explanation(error) or f"{type(error).__name__}: {error}"
            warn(f"WARNING: {what}, the work goes on without: {reason}")
