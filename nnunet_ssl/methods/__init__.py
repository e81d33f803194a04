"""Pretext tasks, found by name through the entry-point group `nnunet_ssl.methods`."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points

from nnunet_ssl.methods.base import Method, MethodOutput

__all__ = ["Method", "MethodOutput", "get_method", "method_names"]

GROUP = "nnunet_ssl.methods"


@lru_cache(maxsize=1)
def method_names() -> tuple[str, ...]:
    """Names of all installed methods, ours and those of other packages."""
    return tuple(sorted({e.name for e in entry_points(group=GROUP)}))


def get_method(name: str) -> type[Method]:
    """Class of the method `name`; raises ValueError listing the known names.

    The import error of a broken third-party method is passed on as it is.
    """
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return entry.load()
    raise ValueError(f"There is no pretext task {name!r}. Known: {', '.join(method_names())}.")
