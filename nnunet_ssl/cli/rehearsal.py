"""`nnUNetv2_pretrain` tries its settings before it prepares images: a mistake costs seconds, not the preprocessing."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from nnunet_ssl.cli.pretrain_flags import BACKBONES, apply_flags
from nnunet_ssl.cli.result_folder import plans_and_folder
from nnunet_ssl.errors import CorpusError


def rehearsal_of(args: argparse.Namespace) -> Callable[[dict[str, Any], str], None]:
    """What tries the settings of a run with plans of that name, as they are once the images have been looked at."""
    from nnunet_ssl.trainers.rehearsal import rehearse

    def rehearse_with(plans: dict[str, Any], name: str) -> None:
        own, _ = plans_and_folder(args, deepcopy(plans), name)
        rehearse(own, args.configuration, args.method, processes_of(args))

    return rehearse_with


def rehearse_unseen(args: argparse.Namespace) -> None:
    """Try the settings before the images have been looked at: with the plans that are there, else with every patch there may be.

    The planner takes a smaller patch where images are small. Only what fails for all sizes fails here.
    """
    from nnunet_ssl.planners.to_estimate import plans_to_estimate
    from nnunet_ssl.trainers.rehearsal import rehearse_sizes

    planner = None if args.plans else BACKBONES[args.backbone or "resenc_l"]
    plans, _ = plans_to_estimate(args.datasets, planner, args.plans, args.spacing, args.normalization, args.storage)
    if args.configuration not in plans["configurations"]:
        return  # which the planner says better
    if "dataset_name" in plans:
        rehearsal_of(args)(plans, plans["plans_name"])
        return
    apply_flags(plans, args)
    (largest, *_) = plans["configurations"][args.configuration]["patch_size"]
    step = stride_of(planner)
    sizes = [[edge] * 3 for edge in range(largest, 0, -step)]
    given = plans["configurations"][args.configuration]["patch_size"]
    rehearse_sizes(
        plans, args.configuration, args.method, processes_of(args), sizes if args.patch_size is None else [given]
    )


def stride_of(planner: str | None) -> int:
    """Voxels between the patch sizes that a planner may choose."""
    from nnunet_ssl.planners.prepare import find_planner

    if planner is None:
        raise CorpusError("Neither a planner nor the name of existing plans is given. Use --backbone or -p.")
    return find_planner(planner).preset.stride


def processes_of(args: argparse.Namespace) -> int:
    """How many processes train together."""
    return (
        int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else max(1, args.num_gpus)
    )
