"""Read the numpy scalars in stock nnU-Net's log as Python numbers, without letting numpy unpickle anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

KINDS = "biufc"  # whole, floating and complex numbers, and truth values


class _NumberType:
    """Stands in for numpy.dtype, whose own unpickling believes any state a file gives it."""

    def __init__(self, code: str, *_: Any) -> None:
        self.type = np.dtype(code) if isinstance(code, str) and len(code) < 8 else np.dtype("O")
        if self.type.kind not in KINDS or self.type.names is not None or self.type.shape:
            raise ValueError(f"a numpy scalar of type {self.type.kind} is no number")

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in (">", "<"):
            self.type = self.type.newbyteorder(state[1])


def _number(kind: _NumberType, value: Any) -> bool | int | float | complex:
    content = value if isinstance(value, bytes) else str(value).encode("latin1")
    if type(kind) is not _NumberType or len(content) != kind.type.itemsize:
        raise ValueError("a numpy scalar with too many or too few bytes")
    return np.frombuffer(content, kind.type)[0].item()


def safe_numpy_scalars() -> list[Any]:
    """What torch's safe loader may call for a pickled numpy scalar, under the names numpy 1 and numpy 2 gave it."""
    return [_NumberType, _named("numpy.core.multiarray"), _named("numpy._core.multiarray")]


def _named(module: str) -> Callable[..., Any]:
    def scalar(*args: Any) -> Any:
        return _number(*args)

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


# torch's loader finds what it may call by these names
_NumberType.__module__, _NumberType.__name__, _NumberType.__qualname__ = "numpy", "dtype", "dtype"
