"""What a command asks for, and what the result folder was started with: a trial must not decide about the real run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nnunet_ssl.corpus.datasets import load_configuration
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.settings.blocks import HOW, PretrainBlock

WEIGHTS = "pretrained_weights"  # key of the plans of a run
GEOMETRY = ("patch_size", "batch_size", "spacing", "normalization_schemes", "architecture")


def note_weights(plans: dict[str, Any], weights: str | None, stem: str | None = None) -> None:
    """Write into the plans of a run which weights it starts from: the last part of the name, no path of this machine."""
    plans[WEIGHTS] = None if weights is None else os.path.basename(weights.rstrip("/")) or weights
    if weights is not None and stem is not None:
        plans[WEIGHTS] += f" with stem {stem}"


def differences(held: dict[str, Any], asked: dict[str, Any], configuration: str, method: str) -> list[str]:
    """One text per setting in which two plans would give different networks: "num_epochs: 5 there, 1000 asked for"."""
    found = []
    before, after = (_settings(plans, configuration, method) for plans in (held, asked))
    if WEIGHTS in held:  # runs of nnUNetv2_train, and of older versions, did not note it
        before[WEIGHTS], after[WEIGHTS] = held[WEIGHTS], asked[WEIGHTS]
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old != new:
            is_long = isinstance(old, Mapping) or isinstance(new, Mapping)
            none = "none" if key == WEIGHTS else "the default"
            texts = [none if value is None else str(value) for value in (old, new)]
            found.append(f"{key} differs" if is_long else f"{key}: {texts[0]} there, {texts[1]} asked for")
    return found


def _settings(plans: dict[str, Any], configuration: str, method: str) -> dict[str, Any]:
    """Everything that decides what a run makes, flat, with defaults in their places."""
    entries = load_configuration(plans, configuration)
    block = PretrainBlock.read(entries, method_names(), configuration)
    config: Any
    own_settings, config = block.of(method, get_method(method).Config)
    settings = {key: value for key, value in asdict(own_settings).items() if key not in HOW}
    own = {f"{method}.{key}": value for key, value in asdict(config).items()}
    geometry = {key if key != "batch_size" else "batch_size of the plans": entries.get(key) for key in GEOMETRY}
    return {key: _plain(value) for key, value in {**settings, **own, **geometry}.items()}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def refuse_differences(folder: str, found: list[str], command: str) -> None:
    """Raise SettingsError where a command asks for something else than the folder holds."""
    if found:
        raise SettingsError(
            f"{folder} holds a run with other settings ({'; '.join(found)}). To go on with that run, its length as "
            f"the flags say: {command} --continue. To start one beside it: {command} --run-name NAME."
        )
