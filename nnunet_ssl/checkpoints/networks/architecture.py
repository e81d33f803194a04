"""Recognise an architecture by the names and shapes in its state dict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from torch import Tensor

STAGE = re.compile(r"^encoder\.stages\.(\d{1,3})\.(?:blocks\.)?(\d{1,3})\.")
BLOCK = re.compile(r"^eva\.blocks\.(\d{1,3})\.")
CONV = re.compile(r"\.convs\.(\d{1,3})\.")
# what the names of other programs' networks look like, and whose they are; the one that most names fit holds
FOREIGN = (
    (r"(^|\.)swinViT\.", "a SwinUNETR of MONAI (or a VoCo or SuPreM made of one)"),
    (r"(^|\.)conv_blocks_context\.", "a U-Net of nnU-Net version 1 (or a STU-Net)"),
    (r"(^|\.)down_tr\d+\.ops\.", "the 3D U-Net of the original Models Genesis"),
    (r"(^|\.)vit\.(patch_embedding|blocks)\.", "a UNETR of MONAI"),
    (r"(^|\.)patch_embedding\.(patch_embeddings|position_embeddings)", "a ViT of MONAI"),
    (r"(^|\.)enc_block_\d+\.", "a MedNeXt"),
    (r"(^|\.)(convInit|down_layers\.\d+\.\d+\.conv\d)", "a SegResNet of MONAI"),
    (r"(^|\.)model\.\d+\.submodule\.", "a U-Net of MONAI"),
    (r"(^|\.)(patch_embed\.proj|blocks\.\d+\.attn\.qkv)\.", "a ViT for images of two axes (timm, MAE, DINO)"),
    (r"(^|\.)layer[1-4]\.\d+\.(conv1|conv2|bn1)\.", "a ResNet of torchvision or MedicalNet"),
)
FAMILIES = ("ResidualEncoderUNet", "PlainConvUNet", "Primus")


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
    # timm's ViTs have much the same names, but one matrix for query, key and value
    if any(name.startswith("eva.blocks.") for name in weights) and not any(".attn.qkv." in name for name in weights):
        projection, norm = weights.get("down_projection.proj.weight"), weights.get("eva.norm.weight")
        return Architecture(
            family="Primus",
            width=None if norm is None or norm.ndim != 1 else norm.shape[0],
            depth=1 + max((int(found[1]) for name in weights if (found := BLOCK.match(name))), default=-1),
            token_size=None if projection is None or projection.ndim < 3 else tuple(projection.shape[2:]),
        )
    features: dict[int, int] = {}
    blocks: dict[int, int] = {}
    residual = any(".blocks." in name for name in weights if name.startswith("encoder.stages."))
    for name, tensor in weights.items():
        found = STAGE.match(name)
        convs = CONV.search(name)
        if found and tensor.ndim > 2:
            stage, block = int(found[1]), int(found[2]) if residual or not convs else int(convs[1])
            features[stage] = tensor.shape[0]
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    if not features:
        return Architecture(family=_foreign(weights) or "an unknown architecture")
    return Architecture(
        family="ResidualEncoderUNet" if residual else "PlainConvUNet",
        features_per_stage=tuple(features[s] for s in sorted(features)),
        blocks_per_stage=tuple(blocks[s] for s in sorted(blocks)),
    )


def _foreign(names: Iterable[str]) -> str | None:
    """Whose network names like these belong to: the one most of them fit; None when unknown."""
    counts = {whose: sum(re.search(pattern, name) is not None for name in names) for pattern, whose in FOREIGN}
    return max(counts, key=lambda whose: counts[whose]) if any(counts.values()) else None


def differences(source: Architecture, target: Architecture) -> str:
    """What tells two architectures apart, in words; empty when nothing recognisable does."""
    if source.family != target.family:
        return f"the checkpoint holds {source}, the network is {target}"
    pairs = [(f.name.replace("_", " "), getattr(source, f.name), getattr(target, f.name)) for f in fields(source)]
    unequal = [f"{name}: checkpoint {a}, network {b}" for name, a, b in pairs if a != b and a is not None]
    return "; ".join(unequal)
