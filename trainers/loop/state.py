"""What a pre-training checkpoint holds, and how a run continues from it."""

from __future__ import annotations

import os
from dataclasses import asdict
from importlib.metadata import version
from os.path import basename, dirname, isfile, join
from typing import Any

import torch

from nnunet_ssl.checkpoints.adaptation_plan import build_adaptation_plan
from nnunet_ssl.checkpoints.read import read_latest
from nnunet_ssl.errors import CheckpointError, FolderTaken, SettingsError
from nnunet_ssl.settings.blocks import HOW
from nnunet_ssl.trainers.context import CheckpointContext
from nnunet_ssl.trainers.distributed import sharding

RESUME_ORDER = (
    "checkpoint_final.pth",
    "checkpoint_latest.pth",
    "checkpoint_latest_previous.pth",
    "checkpoint_best.pth",
)


def existing_checkpoint(folder: str) -> str | None:
    """The checkpoint a run in `folder` continues from, None for a fresh start."""
    return next((join(folder, n) for n in RESUME_ORDER if isfile(join(folder, n))), None)


def refuse_to_overwrite(folder: str) -> None:
    """Raise FolderTaken when a fresh run would overwrite the checkpoints of another one."""
    there = [name for name in RESUME_ORDER if isfile(join(folder, name))]
    if there:
        raise FolderTaken(
            f"{folder} already holds a pre-training ({', '.join(there)}). Add --c to continue it "
            "(nnUNetv2_pretrain continues by itself), or move the folder away to start anew."
        )


def run_record(context: CheckpointContext) -> dict[str, Any]:
    """Everything about the pre-training that is needed later, as plain data."""
    configuration, method = context.configuration_manager.configuration, context.method
    return {
        "method": context.method_name,
        "config": asdict(context.method_config),
        "settings": asdict(context.settings),
        "recipe": asdict(context.recipe),
        "backbone": method.backbone.kind,
        "token_order": "natural" if method.backbone.kind == "primus" else None,
        "num_input_channels": context.num_input_channels,
        "patch_size": list(context.views.network_size),
        "spacing": configuration["spacing"],
        "normalization_schemes": configuration["normalization_schemes"],
        "configuration": context.configuration_name,
        "dataset": context.plans_manager.dataset_name,
        "datasets": [context.plans_manager.dataset_name, *context.settings.datasets],
        "versions": {
            name: version(name) for name in ("nnunet_ssl", "nnunetv2", "torch", "dynamic_network_architectures")
        },
        "citations": method.citation.split(" | "),
        "licence": None,
    }


def pack(context: CheckpointContext) -> dict[str, Any]:
    """The checkpoint of a context. `network_weights` is the bare nnU-Net network under its own key names; so is the teacher's.

    `current_epoch` is the one in which the run continues, after exactly the iterations whose results are in
    `finished_iterations`: see `Position`. Where states are sharded, all
    processes call this, and only the first gets them.
    """
    position, shard = context.position, context.settings.shard
    networks = [network.state_dict(keep_vars=shard) for network in context.method.networks]
    heads, optimizer = context.method.heads(), context.optimizer.state_dict()
    if shard:
        networks = [sharding.whole(weights) for weights in networks]  # names of one weight share it
        heads, optimizer = sharding.whole(heads), sharding.whole_optimizer(optimizer)
    weights, *teacher = map(contiguous, networks)
    heads, optimizer = contiguous(heads), contiguous(optimizer)
    return {
        "network_weights": weights,
        "ssl": {**run_record(context), "heads": heads, **({"teacher": teacher[0]} if teacher else {})},
        "optimizer_state": optimizer,
        "grad_scaler_state": context.grad_scaler.state_dict() if context.grad_scaler is not None else None,
        "logging": context.logger.get_checkpoint(),
        "_best_ema": position.best,
        "current_epoch": position.resume_epoch,
        "finished_iterations": [{k: float(v) for k, v in r.items()} for r in position.resume_results],
        "init_args": context.my_init_kwargs,
        "trainer_name": type(context).__name__,
        "inference_allowed_mirroring_axes": context.inference_allowed_mirroring_axes,
        "nnssl_adaptation_plan": build_adaptation_plan(
            context.method.bare_network,
            context.plans_manager.plans,
            context.configuration_name,
            context.num_input_channels,
            context.views.network_size,
        ),
    }


def contiguous(part: Any, made: dict[tuple[Any, ...], torch.Tensor] | None = None) -> Any:
    """Nested dictionaries with all tensors in the order of their axes: a file does not depend on what a GPU wants.

    made: of which memory there is one already. nnU-Net's networks have up to four names for a weight; it is written once.
    """
    made = {} if made is None else made
    if isinstance(part, dict):
        return {key: contiguous(value, made) for key, value in part.items()}
    if not isinstance(part, torch.Tensor) or part.is_contiguous():
        return part
    memory = (part.data_ptr(), part.dtype, part.shape, part.stride())
    if memory not in made:
        made[memory] = part.contiguous()
    return made[memory]


def unpack(context: CheckpointContext, source: dict[str, Any] | str) -> Any:
    """Put a run into the state of a checkpoint (a dict, or a file whose predecessors stand in when damaged).

    Returns the axes along which nnU-Net may mirror in inference.

    Raises CheckpointError when the file is none of ours, SettingsError when it was made with other settings.
    """
    path: object
    if isinstance(source, str):
        names = (basename(source), *(n for n in RESUME_ORDER if n != basename(source)))
        checkpoint, path, notes = read_latest(dirname(source) or os.curdir, names)
        for note in notes:
            context.print_to_log_file(f"WARNING: {note}")
        context.print_to_log_file(f"Continuing from {path}")
    else:
        checkpoint, path = source, "the given checkpoint"
    if "ssl" not in checkpoint:
        raise CheckpointError(
            f"{path} does not come from a pre-training, so it cannot be continued. "
            "To start from its weights, use -pretrained_weights instead of --c."
        )
    refuse_other_settings(context, checkpoint["ssl"], path)
    saved = [checkpoint["network_weights"], checkpoint["ssl"].get("teacher")]
    for network, weights in zip(context.method.networks, saved, strict=False):
        network.load_state_dict(weights)
    context.method.load_heads(checkpoint["ssl"]["heads"])
    context.optimizer.load_state_dict(checkpoint["optimizer_state"])
    if context.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
        context.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
    context.logger.load_checkpoint(checkpoint["logging"])
    context.position.resume(checkpoint["current_epoch"], checkpoint["finished_iterations"], checkpoint["_best_ema"])
    return checkpoint["inference_allowed_mirroring_axes"]


def refuse_other_settings(context: CheckpointContext, then: dict[str, Any], path: object) -> None:
    """Raise SettingsError when a run would continue as something else; its length may change, and how it is computed."""
    now = run_record(context)
    free = {"num_epochs", "num_val_iterations_per_epoch", "source", *HOW}
    differences = []
    for block in ("method", "config", "settings", "recipe", "patch_size", "num_input_channels"):
        old, new = then[block], now[block]
        if not isinstance(old, dict):
            differences += [f"{block}: {old} then, {new} now"] if old != new else []
            continue
        for key in sorted(set(old) | set(new)):
            before, after = old.get(key), new.get(key)
            before = list(before) if isinstance(before, tuple) else before
            after = list(after) if isinstance(after, tuple) else after
            if key in old and key not in free and before != after:  # a new version's new settings are at their defaults
                differences.append(f"{key}: {before} then, {after} now")
    if differences:
        raise SettingsError(
            f"{path} was made with other settings ({'; '.join(differences)}). Put them back to continue, or move the "
            "folder away to start anew."
        )
