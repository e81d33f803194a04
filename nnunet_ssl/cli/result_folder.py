"""`nnUNetv2_pretrain` and its result folder: which one it is, that nobody else is in it, that it holds what is asked for."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnunet_ssl.cli.pretrain_flags import BACKBONES, apply_flags


def name_of_run(plans_name: str, args: argparse.Namespace) -> str:
    """The name of the run's own plans, by which nnU-Net names the result folder."""
    return plans_name if args.run_name is None else f"{plans_name}_{args.run_name}"


@contextmanager
def nobody_else_in_folder(args: argparse.Namespace) -> Iterator[None]:
    """Refuse before hours of preprocessing what would be refused after them: a second run in the result folder."""
    from torch import distributed as dist

    from nnunet_ssl.planners.prepare import plans_in_use
    from nnunet_ssl.trainers import launch
    from nnunet_ssl.trainers.loop.run_lock import alone_in, doing

    if args.estimate or (dist.is_initialized() and dist.get_rank() > 0):
        yield
        return
    planner = None if args.plans else BACKBONES[args.backbone or "resenc_l"]
    dataset, name = plans_in_use(args.datasets, planner, args.plans, args.spacing, args.normalization, args.storage)
    plans = {"dataset_name": dataset, "plans_name": name_of_run(name, args)}
    folder = launch.output_folder(args.method, plans, args.configuration, args.fold)
    with alone_in(folder, doing(folder)):
        yield


def plans_and_folder(args: argparse.Namespace, plans: dict[str, Any], plans_name: str) -> tuple[dict[str, Any], str]:
    """The plans of this run with the flags in them, and its result folder; `plans` are what was prepared.

    Raises SettingsError where the folder holds a run that would become another network, unless that is to be continued.
    """
    from nnunet_ssl.corpus.datasets import load_configuration
    from nnunet_ssl.planners.plans_check import require_complete
    from nnunet_ssl.trainers import launch
    from nnunet_ssl.trainers.loop.asked import WEIGHTS, differences, note_weights, refuse_differences
    from nnunet_ssl.trainers.loop.state import existing_checkpoint

    asked = {**plans, "plans_name": name_of_run(plans_name, args)}
    folder = launch.output_folder(args.method, asked, args.configuration, args.fold)
    held = launch.plans_of_run(folder, asked)
    require_complete(held, load_configuration(held, args.configuration), args.configuration)
    apply_flags(asked, args)
    note_weights(asked, args.pretrained_weights, args.stem)
    if existing_checkpoint(folder) and not args.go_on:
        refuse_differences(folder, differences(held, asked, args.configuration, args.method), command_line())
    apply_flags(held, args)
    held.setdefault(WEIGHTS, asked[WEIGHTS])
    return held, folder


def command_line() -> str:
    """What the user has typed, to be typed again with more behind it."""
    return shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
