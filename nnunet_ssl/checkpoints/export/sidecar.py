"""A checkpoint as a .safetensors file: tensors once, everything else as JSON in the file's own metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_ssl.checkpoints.aliases import own_name
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.files.atomic import atomic_path

MARK = "nnunet_ssl"  # the metadata entry that says the file is one of ours; its value is the version of the layout
LAYOUT = "1"
HEADS = "ssl.heads."


def write_safetensors(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write `network_weights`, and heads where there are any; the rest, which must be what JSON can hold, beside them.

    Every tensor is stored once, under its own name; the other names it has are written down and come back on reading.
    """
    from safetensors.torch import save_file

    weights: Mapping[str, Tensor] = checkpoint["network_weights"]
    heads: Mapping[str, Tensor] = checkpoint["ssl"].get("heads", {})
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in weights.items():
        own = own_name(name)
        if own != name and weights.get(own) is tensor:
            aliases[name] = own
        else:
            stored[name] = tensor.contiguous()
    stored.update({HEADS + name: tensor.clone().contiguous() for name, tensor in heads.items()})
    metadata = {
        "format": "pt",
        MARK: LAYOUT,
        "names": json.dumps(list(weights)),
        "aliases": json.dumps(aliases),
        "config": json.dumps(config_of(checkpoint), allow_nan=False),
    }
    with atomic_path(path) as temporary:
        save_file(stored, temporary, metadata)


def config_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Everything of an exported checkpoint that is no tensor."""
    ssl = {key: value for key, value in checkpoint["ssl"].items() if key != "heads"}
    return {**{key: value for key, value in checkpoint.items() if key != "network_weights"}, "ssl": ssl}


def restore(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None, path: Path) -> dict[str, Any]:
    """The checkpoint behind the content of a .safetensors file; the tensors themselves where the file is not ours.

    Raises CheckpointError for a file of ours whose metadata are damaged or of a later version.
    """
    if not metadata or MARK not in metadata:
        return dict(tensors)
    if metadata[MARK] != LAYOUT:
        raise CheckpointError(
            f"{path} has layout {metadata[MARK][:20]!r} of nnunet_ssl, this version reads {LAYOUT}. Update nnunet_ssl."
        )
    try:
        names, aliases, checkpoint = (json.loads(metadata[key]) for key in ("names", "aliases", "config"))
        weights = {name: tensors[aliases.get(name, name)] for name in names}
        heads = {name.removeprefix(HEADS): t for name, t in tensors.items() if name.startswith(HEADS)}
        if heads:
            checkpoint["ssl"]["heads"] = heads
        return {**checkpoint, "network_weights": weights}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"The metadata of {path} are damaged ({type(error).__name__}: {str(error)[:200]}). Download or export it again."
        ) from error
