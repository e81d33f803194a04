"""`nnUNetv2_pretrain --estimate`: what can be said of a run before a step is measured, or where none can be."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Any

from nnunet_ssl.cli.pretrain_flags import BACKBONES, apply_flags
from nnunet_ssl.cli.result_folder import name_of_run
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.settings.blocks import PretrainBlock


def estimate_without_a_step(args: argparse.Namespace) -> str | None:
    """Print which batch fits which GPU, and times that were measured before.

    Needs no images, no device and no prepared data set. Returns why no step can be measured here, None where one can; under
    torchrun, one process prints.
    """
    under_torchrun = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    processes = int(os.environ["WORLD_SIZE"]) if under_torchrun else args.num_gpus
    from nnunet_ssl.trainers.profiling.estimating import estimate_by_counting

    plans, source = plans_of(args)
    configuration = plans["configurations"][args.configuration]
    block = PretrainBlock.read(configuration, method_names(), args.configuration)
    shard = block.of(args.method, get_method(args.method).Config)[0].shard
    if not under_torchrun or os.environ["RANK"] == "0":
        print(
            f"{source}\n\n{estimate_by_counting(plans, args.configuration, args.method, backbone_of(configuration), processes)}\n"
        )
    if under_torchrun:
        return (
            "under torchrun one process cannot be measured alone. Without it, --num-gpus N measures a process' share."
        )
    if shard and processes > 1:
        return "what one process does of a sharded training cannot be measured alone."
    return without_device(args.device)


def plans_of(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The plans of the run with the flags in them, and a line that says where they come from."""
    from nnunetv2.paths import nnUNet_results

    from nnunet_ssl.corpus.datasets import load_configuration
    from nnunet_ssl.planners.to_estimate import plans_to_estimate
    from nnunet_ssl.trainers import launch

    planner = None if args.plans else BACKBONES[args.backbone or "resenc_l"]
    plans, source = plans_to_estimate(
        args.datasets, planner, args.plans, args.spacing, args.normalization, args.storage
    )
    if nnUNet_results.is_set() and "dataset_name" in plans:
        plans["plans_name"] = name_of_run(plans["plans_name"], args)
        folder = launch.output_folder(args.method, plans, args.configuration, args.fold)
        plans = launch.plans_of_run(folder, plans)
    plans["configurations"][args.configuration] = load_configuration(plans, args.configuration)
    apply_flags(plans, args)
    return plans, source


def backbone_of(configuration: Mapping[str, Any]) -> str | None:
    """The name of the preset whose network a configuration has, None when it is another one."""
    from nnunet_ssl.planners import ssl_planner

    for name, planner in BACKBONES.items():
        preset = getattr(ssl_planner, planner).preset
        own = configuration["architecture"]["arch_kwargs"]
        if own == preset.architecture(own.get("input_shape", ()))["arch_kwargs"]:
            return name
    return None


def without_device(device: str) -> str | None:
    """Why this device cannot be measured, None when it can."""
    from torch import device as torch_device

    from nnunet_ssl.trainers.device.devices import require_device

    try:
        require_device(torch_device(device))
    except RuntimeError as error:
        return str(error)
    return None
