"""The flags of `nnUNetv2_pretrain` that are settings of the `ssl` block, checked as the block in the plans is."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from dataclasses import fields
from functools import partial
from typing import Any

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.nearest import did_you_mean
from nnunet_ssl.settings.allowed import AXES
from nnunet_ssl.settings.blocks import PretrainBlock, PretrainSettings, all_at_once

WHERE = "The flags"
FLAGS = {
    "num_epochs": "epochs",
    "num_iterations_per_epoch": "iterations_per_epoch",
    "num_val_iterations_per_epoch": "val_iterations_per_epoch",
    "batch_size": "batch_size",
    "accumulate": "accumulate",
    "recompute": "recompute",
    "filter": "filter",
    "sampling": "sampling",
    "initial_lr": "lr",
    "seed": "seed",
    "shard": "shard",
    "deterministic": "deterministic",
    "stop_on_collapse": "stop_on_collapse",
    "save_every": "save_every",
    "early_stop": "early_stop",
    "preview_nifti": "preview_nifti",
    "probe": "probe",
    "probe_every": "probe_every",
    "channels": "channels",
}


def parse_value(text: str) -> Any:
    """What a person typed behind KEY=: JSON where it is that, else text, of which the setting's hint makes what it means."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def flags_as_settings(args: argparse.Namespace, axes: int = AXES) -> dict[str, Any]:
    """The entries of the `ssl` block that the flags set, as its hints say; axes: of the patch.

    Raises one SettingsError for all values that do not fit.
    """
    return PretrainBlock.split(_as_typed(args), method_names(), WHERE, axes).converted(_config_of)


def check_settings(args: argparse.Namespace, axes: int = AXES) -> None:
    """Raise SettingsError for flags that are no settings, or do not go together."""
    block = PretrainBlock.split(flags_as_settings(args, axes), method_names(), WHERE, axes)
    all_at_once(*(partial(block.of, name, _config_of(name)) for name in sorted({args.method, *block.methods})))


def _config_of(method: str) -> type:
    return get_method(method).Config


def known_setting(name: str, method: str, value: str) -> str:
    """The name of a general setting as it was typed, or as its flag is called (lr for initial_lr).

    Raises SettingsError for one that only a pretext task has, saying what to type: of several, for the method that is trained.
    """
    general = {field.name for field in fields(PretrainSettings)}
    by_flag = {flag: setting for setting, flag in FLAGS.items()}
    plain = name.replace("-", "_")
    if name in general or plain in by_flag:
        return name if name in general else by_flag[plain]
    tasks = [m for m in dict.fromkeys([method, *method_names()]) if name in {f.name for f in fields(_config_of(m))}]
    if not tasks:
        return name  # which the checker refuses, with the names of all
    meant = shlex.quote(f"{tasks[0]}.{name}={value}")
    others = f" ({', '.join(tasks[1:])} have one, too)" if len(tasks) > 1 else ""
    raise SettingsError(f"--set {name}: this is a setting of the pretext task. Type --set {meant}{others}.", found=name)


def _as_typed(args: argparse.Namespace) -> dict[str, Any]:
    block: dict[str, Any] = {name: getattr(args, flag) for name, flag in FLAGS.items()}
    block = {k: v for k, v in block.items() if v is not None}
    assignments = [entry.partition("=") for entry in args.set]
    if args.mask_ratio is not None:
        assignments.append((f"{args.method}.mask_ratio", "=", str(args.mask_ratio)))
    for key, equals, value in assignments:
        if not equals or not re.fullmatch(r"[^.]+(\.[^.]+)?", key):
            raise SettingsError(
                f"--set wants KEY=VALUE or METHOD.KEY=VALUE, found {key + equals + value!r}. Example: "
                f"--set {args.method}.mask_ratio=0.6",
                found=key,
            )
        target, _, name = key.rpartition(".")
        if target and target not in method_names():
            raise SettingsError(
                f"--set {key}: only pretext tasks have settings of their own, and {target!r} is none."
                f"{did_you_mean(target, method_names())} Tasks: {', '.join(method_names())}.",
                found=target,
            )
        if not target:
            key = name = known_setting(name, args.method, value)
        own = block.setdefault(target, {}) if target else block
        if not isinstance(own, dict):
            raise SettingsError(
                f"--set {target}=... and --set {key}=... contradict each other. Use the second.", found=own
            )
        own[name] = parse_value(value)
    return block
