"""Which program wrote a checkpoint, and the peculiarities of how its weights are named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nnunet_ssl.checkpoints.aliases import NETWORK_ROOT, own_name
from nnunet_ssl.checkpoints.canonical import NNSSL_METHODS
from nnunet_ssl.checkpoints.description.stated import text
from nnunet_ssl.checkpoints.read import WEIGHT_KEYS, network_weights


def name_format(checkpoint: Mapping[str, Any]) -> str:
    """The program that wrote a checkpoint and in which state, by the keys it holds."""
    trainer = text(checkpoint.get("trainer_name")) or ""
    resumable = checkpoint.get("optimizer_state") is not None
    if "ssl" in checkpoint:
        return f"nnunet_ssl, pre-training {'checkpoint (can be continued)' if resumable else 'for others (exported)'}"
    if "spark_weights" in checkpoint:
        return "nnssl, SparK family as its trainer saves it"
    if "nnssl_adaptation_plan" in checkpoint:
        return "nnssl, as its trainer saves it" if resumable else "nnssl, published"
    arguments = checkpoint.get("init_args")
    if (
        isinstance(arguments, Mapping)
        and "plans" in arguments
        and isinstance(checkpoint.get("network_weights"), Mapping)
    ):
        if trainer.startswith("SSL"):
            return f"nnU-Net, trained with nnunet_ssl's {trainer}"
        known = any(part in trainer for part in NNSSL_METHODS) and not trainer.startswith("nnUNet")
        return "nnssl, without its adaptation plan" if known else "nnU-Net"
    key = next((k for k in WEIGHT_KEYS if isinstance(checkpoint.get(k), Mapping)), None)
    if any(part in trainer for part in NNSSL_METHODS):
        return "nnssl, without its adaptation plan"
    return "bare state dict" if key is None else f'weights under "{key}", with nothing on where they come from'


def naming_notes(checkpoint: Mapping[str, Any]) -> list[str]:
    """What is unusual about the names of the weights, in sentences; raises CheckpointError when there are no weights."""
    found = next((checkpoint[k] for k in WEIGHT_KEYS if isinstance(checkpoint.get(k), Mapping)), checkpoint)
    raw = [name for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)]
    notes = []
    if any(name.startswith("module.") for name in raw):
        notes.append('Names begin with "module.": saved from inside DistributedDataParallel. Taken off on loading.')
    if any("_orig_mod" in name.split(".") for name in raw):
        notes.append('Names hold "_orig_mod.": saved from inside torch.compile. Taken off on loading.')
    weights = network_weights(checkpoint)
    prefixes = {match["prefix"] for name in weights if (match := NETWORK_ROOT.match(name))}
    prefix = min(prefixes, key=len, default="")
    if prefix:
        notes.append(f'The network lies under "{prefix}" in the names. Taken off on loading.')
    if not any(name.startswith(("decoder.stages.", "up_projection.")) for name in weights) and prefixes:
        notes.append("Encoder only: there is no decoder in the file.")
    if _aliases_differ(weights):
        notes.append(
            "Convolutions have two names with unlike values (SparK): the trained ones, under all_modules, are used."
        )
    return notes


def _aliases_differ(weights: Mapping[str, Tensor]) -> bool:
    for name, tensor in weights.items():
        own = weights.get(own_name(name))
        if ".all_modules." in name and own is not None and own is not tensor and own.shape == tensor.shape:
            return not torch.equal(own, tensor)  # all pairs differ or none does
    return False
