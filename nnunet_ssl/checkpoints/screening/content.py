"""Check what came out of a checkpoint: plain values and dense tensors, of a size the file can hold."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssl.checkpoints.screening.pickle_screen import MOST_AXES

MOST_REPEATS = 200_000
DEEPEST = 64
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.device, torch.dtype, torch.layout)
WEIGHT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_Place = tuple["_Place | None", Any]  # the keys that lead to a value, the last one first


def why_refused(content: Any, file_size: int) -> str | None:
    """What is wrong with the content of a file of `file_size` bytes, or None: walks without recursion, in full."""
    waiting: list[tuple[Any, int, _Place | None]] = [(content, 0, None)]
    seen, repeats = set[int](), 0  # lists of the same lists grow without bound once they are written out
    while waiting:
        value, depth, place = waiting.pop()
        kind = type(value)
        if kind in PLAIN:
            continue
        if isinstance(value, (dict, list, tuple, set)) and len(value) > 0:
            repeats += id(value) in seen
            seen.add(id(value))
        if repeats > MOST_REPEATS:
            return f"it repeats its parts more than {MOST_REPEATS:,} times within each other"
        if depth > DEEPEST:
            return f"{_where(place)} is nested more than {DEEPEST} levels deep"
        if kind in (dict, OrderedDict):
            if kind is OrderedDict and set(vars(value)) - {"_metadata"}:
                return f"{_where(place)} carries attributes of its own"
            for key, item in dict.items(value):
                if type(key) not in (*PLAIN, tuple):
                    return f"{_where(place)} has a {type(key).__name__} as a key"
                waiting.append((item, depth + 1, (place, key)))
        elif kind in (list, tuple, set, torch.Size):
            waiting.extend((item, depth + 1, (place, number)) for number, item in enumerate(value))
        elif isinstance(value, Tensor):
            reason = _tensor(value, file_size)
            if reason:
                return f"{_where(place)} {reason}"
        else:
            return f"{_where(place)} is a {kind.__module__}.{kind.__qualname__}"
    return None


def _tensor(tensor: Tensor, file_size: int) -> str | None:
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"is a tensor of a class of its own, {type(tensor).__qualname__}"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"is a tensor of layout {tensor.layout}"
    if tensor.is_quantized:
        return f"is quantised ({tensor.dtype})"
    if tensor.device.type != "cpu":
        return f"is on the device {tensor.device}, without values"
    if tensor.ndim > MOST_AXES:
        return f"is a tensor with {tensor.ndim:,} axes, more than {MOST_AXES}"
    if tensor.numel() > 1 and tensor.numel() * tensor.element_size() > file_size:
        return f"declares shape {tuple(tensor.shape)}, more values than the file holds"
    return None


def _where(place: _Place | None) -> str:
    keys: list[str] = []
    while place is not None:
        key = place[1]
        keys.append(
            f"[{key[:100]!r}]" if isinstance(key, str) else f"[{key if type(key) is int else type(key).__name__}]"
        )
        place = place[0]
    return "the checkpoint" + "".join(reversed(keys[-8:]))
