"""Networks with a stem for every data set they were trained on (MultiTalent, arXiv:2303.14444): one stem of them, or their mean.

Their files name stems `encoder.stem.<id>`, one of which the adaptation plan's `key_to_stem` chooses; which data set an id stands
for is written nowhere in them. The published ones choose the stem of CT (nnDetection's docs/finetuning.md, section 3.4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_ssl.errors import CheckpointError

STEM = re.compile(r"^(?P<before>(?:decoder\.)?encoder\.stem)\.(?P<id>(?!convs\.)[^.]+)\.(?P<after>convs\..+)$")
MEAN = "mean"
IN_PROJECTION = ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"]


@dataclass(frozen=True)
class Chosen:
    """Weights with one stem under the usual names; `stem` is its id, or "mean". `why` completes "stem X of N, ..."."""

    weights: dict[str, Tensor]
    stem: str
    why: str


def stems_of(names: Mapping[str, Any]) -> list[str]:
    """The ids of the stems in a state dict with bare names; none where there is one without an id."""
    return list(dict.fromkeys(found["id"] for name in names if (found := STEM.match(name))))


def choose_stem(
    weights: Mapping[str, Tensor], stated: str | None, wanted: str | None, channel_names: Sequence[str] | None = None
) -> Chosen:
    """One stem of `weights` that hold several: the wanted one, else the stated one for CT, else the mean of all.

    stated: what the adaptation plan calls key_to_stem. wanted: an id, the number an id begins with, or "mean". channel_names:
    of the images the network is for; where they are not known, the stated stem is taken. Raises CheckpointError for a stem
    that is not there, and for a mean of stems that differ in shape.
    """
    stems = stems_of(weights)
    own = (stated or "").rpartition(".")[2]
    if wanted is not None:
        stem, why = _find(wanted, stems), "as asked for"
    elif own not in stems:
        stem, why = MEAN, "because the file chooses none"
    elif channel_names and not any(name.strip().upper() == "CT" for name in channel_names):
        stem, why = MEAN, f"because the file's own choice, {own}, is that of CT in all published files"
    else:
        stem, why = own, "the file's own choice"
    return Chosen(_mean(weights, stems) if stem == MEAN else _take(weights, stem), stem, why)


def _find(wanted: str, stems: Sequence[str]) -> str:
    text = str(wanted).removeprefix("encoder.stem.")
    if text == MEAN or text in stems:
        return text
    numbered = [stem for stem in stems if text.isdigit() and _number(stem) == int(text)]
    if len(numbered) == 1:
        return numbered[0]
    meant = f"stems that begin with this number: {', '.join(numbered)}" if numbered else f"its stems: {listed(stems)}"
    raise CheckpointError(f"The checkpoint has no stem {text[:50]!r}, {meant}. Expected one of them, or {MEAN}.")


def _number(stem: str) -> int | None:
    found = re.match(r"\d{1,9}(?!\d)", stem)
    return int(found[0]) if found else None


def listed(stems: Sequence[str], most: int = 100) -> str:
    """Ids for a message."""
    return ", ".join(stem[:50] for stem in stems[:most]) + (", ..." if len(stems) > most else "")


def _take(weights: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    kept = {}
    for name, tensor in weights.items():
        found = STEM.match(name)
        if found is None:
            kept[name] = tensor
        elif found["id"] == stem:
            kept[f"{found['before']}.{found['after']}"] = tensor
    return kept


def _mean(weights: Mapping[str, Tensor], stems: Sequence[str]) -> dict[str, Tensor]:
    all_of_them = [_take(weights, stem) for stem in stems]
    shared = {name for name in weights if not STEM.match(name)}
    result: dict[str, Tensor] = {}
    for name, tensor in all_of_them[0].items():
        if name in shared:
            result[name] = tensor
            continue
        values = [taken.get(name) for taken in all_of_them]
        if any(value is None or value.shape != tensor.shape for value in values):
            raise CheckpointError(
                f"The stems of the checkpoint differ in {name}, so they have no mean. Choose one with --stem: {listed(stems)}."
            )
        result[name] = torch.stack([value.float() for value in values if value is not None]).mean(0).to(tensor.dtype)
    return result
