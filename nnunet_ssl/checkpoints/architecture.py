"""Recognise an architecture by the names and shapes in its state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import Tensor

STAGE = re.compile(r"^encoder\.stages\.(\d+)\.(?:blocks\.)?(\d+)\.")


@dataclass(frozen=True)
class Architecture:
    """What decides whether weights fit; None where it does not apply."""

    family: str
    features_per_stage: tuple[int, ...] | None = None
    blocks_per_stage: tuple[int, ...] | None = None
    width: int | None = None
    depth: int | None = None
    token_size: tuple[int, ...] | None = None

    def __str__(self) -> str:
        values = [(f.name.replace("_", " "), getattr(self, f.name)) for f in fields(self)[1:]]
        details = [f"{name} {value}" for name, value in values if value is not None]
        return f"{self.family} ({', '.join(details)})" if details else self.family


def recognise(weights: Mapping[str, Tensor]) -> Architecture:
    """The architecture behind a state dict with canonical names (`encoder.*` or `eva.*`)."""
    if any(name.startswith("eva.blocks.") for name in weights):
        projection, norm = weights.get("down_projection.proj.weight"), weights.get("eva.norm.weight")
        return Architecture(
            family="Primus",
            width=None if norm is None else norm.shape[0],
            depth=1 + max(int(name.split(".")[2]) for name in weights if name.startswith("eva.blocks.")),
            token_size=None if projection is None else tuple(projection.shape[2:]),
        )
    features: dict[int, int] = {}
    blocks: dict[int, int] = {}
    residual = any(".blocks." in name for name in weights if name.startswith("encoder.stages."))
    for name, tensor in weights.items():
        found = STAGE.match(name)
        convs = re.search(r"\.convs\.(\d+)\.", name)
        if found and tensor.ndim > 2:
            stage, block = int(found[1]), int(found[2]) if residual or not convs else int(convs[1])
            features[stage] = tensor.shape[0]
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    if not features:
        return Architecture(family="an unknown architecture")
    return Architecture(
        family="ResidualEncoderUNet" if residual else "PlainConvUNet",
        features_per_stage=tuple(features[s] for s in sorted(features)),
        blocks_per_stage=tuple(blocks[s] for s in sorted(blocks)),
    )


def differences(source: Architecture, target: Architecture) -> str:
    """What tells two architectures apart, in words; empty when nothing recognisable does."""
    if source.family != target.family:
        return f"the checkpoint holds {source}, the network is {target}"
    pairs = [(f.name.replace("_", " "), getattr(source, f.name), getattr(target, f.name)) for f in fields(source)]
    unequal = [f"{name}: checkpoint {a}, network {b}" for name, a, b in pairs if a != b and a is not None]
    return "; ".join(unequal)
