"""Whether two pre-trainings are one and the same: weights, optimiser and numbers of the log, bit by bit."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

CLOCK = ("epoch_start_timestamps", "epoch_end_timestamps")
KEPT = ("network_weights", "optimizer_state", "current_epoch", "finished_iterations", "_best_ema")


def content(file: Path) -> dict[str, Any]:
    """What of a checkpoint has to be the same: weights, optimiser, place, log but for its clock."""
    saved = torch.load(file, weights_only=True)
    log = json.loads(json.dumps(saved["logging"]))
    for part in (log, *log.values()):
        for name in CLOCK:
            if isinstance(part, dict):
                part.pop(name, None)
    return {**{k: saved[k] for k in KEPT}, "logging": log, "heads": saved["ssl"]["heads"]}


def digest(value: Any) -> str:
    """The same text for the same content, tensors bit by bit."""
    hashed = sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            hashed.update(part.contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for key in part:
                hashed.update(repr(key).encode())
                add(part[key])
        elif isinstance(part, (list, tuple)):
            for item in part:
                add(item)
        else:
            hashed.update(repr(part).encode())

    add(value)
    return hashed.hexdigest()


def differing(found: Path, expected: Path) -> list[str]:
    """Names of the parts in which two checkpoints differ."""
    one, other = content(found), content(expected)
    return [name for name in one if digest(one[name]) != digest(other[name])]
