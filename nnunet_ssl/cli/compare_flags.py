"""The flags of nnUNetv2_pretrain_compare as a description, and what they say differently from the folder's."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnunet_ssl.comparison.by_protocol import check_datasets, datasets_here, trainer_for
from nnunet_ssl.comparison.description import (
    FINETUNE,
    NAME,
    SCRATCH,
    STOCK,
    Description,
    differences,
    parse_description,
    read_description,
    write_description,
)
from nnunet_ssl.comparison.protocols.protocol import load_protocol
from nnunet_ssl.corpus.dataset_names import datasets_in
from nnunet_ssl.errors import FolderTaken, SettingsError

NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.+-]*)=(.+)", re.DOTALL)
OF_ARMS = ("weights", "trainer", "plans", "adapt", "stock", "no_scratch")
PLAIN = ("labelled", "epochs", "iterations_per_epoch", "batch_size", "metrics", "tolerance_mm", "protocol", "keep")


def description_of(
    args: argparse.Namespace,
    folder: Path,
    resolve: Callable[[Sequence[str]], list[str]],
    write: bool,
    check: Callable[[Description], None] = lambda _: None,
) -> Description:
    """The folder's description, or a new one from the flags, which `write` puts into the folder when `check` raises nothing.

    Flags that are not given are as the folder has them. resolve: whole names of data sets. Raises SettingsError where the flags
    say something else than the folder, or too little.
    """
    there = read_description(folder)
    protocol = None if args.protocol is None else load_protocol(args.protocol)
    if protocol is not None and there is None:
        names = datasets_here(protocol, known_datasets(), resolve(args.datasets) if args.datasets else [])
        args.datasets, args.epochs = names, args.epochs or protocol.epochs[0]
        check_datasets(protocol, names)
    before = {} if there is None else there.to_json()
    asked = parse_description({**before, **content_of(args, resolve, new=there is None)}, "The flags")
    if there is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise FolderTaken(f"{folder} holds files, and no comparison.json. Give a new folder with -o.", path=folder)
        if write:
            check(asked)
            folder.mkdir(parents=True, exist_ok=True)
            write_description(asked, folder)
        return asked
    different = differences(there, asked)
    if different:
        go_on = shlex.join(["nnUNetv2_pretrain_compare", "-o", str(folder)])
        raise SettingsError(
            f"{folder} holds another comparison: {'; '.join(different)}. Without these flags it goes on: {go_on}. Arms, folds, "
            "seeds and numbers of labels may be added in its comparison.json; or give another folder with -o."
        )
    return there


def content_of(args: argparse.Namespace, resolve: Callable[[Sequence[str]], list[str]], new: bool) -> dict[str, Any]:
    """What the flags say, in the form of comparison.json. new: there is none yet, so that arms are wanted in any case."""
    content: dict[str, Any] = {key: getattr(args, key) for key in PLAIN if getattr(args, key) is not None}
    if args.datasets:
        configuration = {"configuration": args.configuration} if args.configuration else {}
        content["datasets"] = [{"dataset": name, **configuration} for name in resolve(args.datasets)]
    if args.folds:
        content["folds"] = args.folds
    if args.seeds is not None:
        content["seeds"] = list(range(args.seeds))
    if new or any(getattr(args, name) not in (None, [], False) for name in OF_ARMS):
        content["arms"] = arms_of(args)
    return content


def arms_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Arms in the order of the page: scratch, the checkpoints, nnU-Net's own; raises SettingsError where nothing is given."""
    if not args.weights and args.plans is None:
        raise SettingsError("which checkpoints? Type -pretrained_weights X, a file or a model on the hub, or several")
    protocol = None if args.protocol is None else load_protocol(args.protocol)
    tuned = [
        {
            "name": name,
            "weights": weights,
            "trainer": args.trainer or (protocol and trainer_for(protocol, backbone_of(weights))) or FINETUNE,
            "plans": args.plans,
            "adapt": args.adapt,
        }
        for name, weights in named_weights(args.weights)
    ]
    arms = [] if args.no_scratch else [{"name": "scratch", "trainer": SCRATCH, "plans": args.plans}]
    arms += tuned
    if args.stock is not None:
        arms.append({"name": "nnunet", "trainer": STOCK, "plans": args.stock})
    return arms


def named_weights(texts: Sequence[str]) -> list[tuple[str, str]]:
    """(name of the arm, weights) for what was typed: X, or NAME=X. A file is named by its method, a model by its own name."""
    named: list[tuple[str, str]] = []
    for text in texts:
        typed = None if os.path.exists(os.path.expanduser(text)) else NAMED.fullmatch(text)
        weights = typed.group(2) if typed else text
        local = Path(weights).expanduser()
        weights = str(local.resolve()) if local.exists() else weights
        name = typed.group(1) if typed else name_of(weights)
        taken = [other for other, _ in named]
        number = 2
        while not typed and name.lower() in [other.lower() for other in taken]:
            name, number = f"{re.sub(r'_[0-9]+$', '', name) if number > 2 else name}_{number}", number + 1
        named.append((name, weights))
    return named


def backbone_of(weights: str) -> str | None:
    """Whether a checkpoint's network is a "unet" or "primus", as far as it tells; raises CheckpointError where there is none."""
    from nnunet_ssl.checkpoints.canonical import canonical_weights
    from nnunet_ssl.checkpoints.hub.resolve import resolve_source
    from nnunet_ssl.checkpoints.read import read_checkpoint

    return canonical_weights(read_checkpoint(resolve_source(weights).path))[1].get("backbone")


def known_datasets() -> list[str]:
    """All data sets in nnU-Net's folders."""
    folders = (os.environ.get(name) for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    return sorted({name for folder in folders if folder for name in datasets_in(folder)})


def name_of(weights: str) -> str:
    """A short name for a checkpoint; raises CheckpointError where there is none."""
    from nnunet_ssl.checkpoints.hub.resolve import resolve_source
    from nnunet_ssl.checkpoints.read import read_checkpoint

    source = resolve_source(weights)
    if source.origin.repo_id is not None:
        name = source.origin.repo_id.rpartition("/")[2]
    else:
        ssl = read_checkpoint(source.path).get("ssl")
        name = str(ssl.get("method") or "") if isinstance(ssl, dict) else ""
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name or source.path.stem).strip("-_.")
    return name if NAME.fullmatch(name) else "weights"
