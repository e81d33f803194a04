"""nnUNetv2_pretrain: from data set ids to a pre-trained network in one command."""

from __future__ import annotations

import argparse
import os
from typing import Any

from nnunet_ssl.cli.flag_settings import flags_as_settings
from nnunet_ssl.cli.logger_flags import use_loggers
from nnunet_ssl.cli.pretrain_flags import BACKBONES, axes_of, build_parser, check_flags


def prepare(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Fingerprint, plan and preprocess what is missing; returns the plans and their name."""
    from nnunet_ssl.cli.rehearsal import rehearsal_of
    from nnunet_ssl.planners.prepare import prepare_corpus

    return prepare_corpus(
        args.datasets,
        None if args.plans else BACKBONES[args.backbone or "resenc_l"],
        plans_name=args.plans,
        configuration=args.configuration,
        spacing=args.spacing,
        normalization=args.normalization,
        storage=args.storage,
        num_processes=args.num_processes,
        expression=args.filter,
        check=None if args.preprocess_only else rehearsal_of(args),
    )


def estimate(args: argparse.Namespace) -> bool:
    """Print what can be said without a step; returns whether steps can be measured here."""
    from nnunet_ssl.cli.estimate import estimate_without_a_step

    obstacle = estimate_without_a_step(args)
    if obstacle and os.environ.get("RANK", "0") == "0":
        print(f"Nothing was measured: {obstacle}")
    return not obstacle


def run(args: argparse.Namespace) -> None:
    """Prepare the corpus and train."""
    from batchgenerators.utilities.file_and_folder_operations import join
    from nnunetv2.paths import nnUNet_preprocessed
    from torch import device
    from torch import distributed as dist

    from nnunet_ssl.checkpoints.read import read_checkpoint
    from nnunet_ssl.cli.rehearsal import rehearse_unseen
    from nnunet_ssl.cli.result_folder import nobody_else_in_folder, plans_and_folder
    from nnunet_ssl.corpus.folders import require_folder
    from nnunet_ssl.files.entering import read_json
    from nnunet_ssl.files.folders import require_writable
    from nnunet_ssl.integration.pretrained_weights import resolve_once_per_machine
    from nnunet_ssl.methods import get_method, method_names
    from nnunet_ssl.report.benchmark_table import benchmark_table
    from nnunet_ssl.settings.blocks import PretrainBlock
    from nnunet_ssl.trainers import launch
    from nnunet_ssl.trainers.data.probe_images import require_probe
    from nnunet_ssl.trainers.device.devices import require_device
    from nnunet_ssl.trainers.distributed.processes import first_process_first
    from nnunet_ssl.trainers.distributed.sharding import require_sharding
    from nnunet_ssl.trainers.loop.next_commands import next_commands
    from nnunet_ssl.trainers.profiling.benchmark import benchmark

    check_flags(args)
    if args.preprocess_only:
        _, name = prepare(args)
        print(f"Everything is prepared for the plans {name}. The same command without --preprocess-only trains.")
        return
    if args.estimate and not estimate(args):
        return
    require_device(device(args.device))
    use_loggers(args)
    asked = flags_as_settings(args, axes_of(args))
    require_probe(asked.get("probe"), bool(asked.get("shard")))
    if not args.estimate:
        require_writable(require_folder("nnUNet_results"))
    under_torchrun = launch.join_torchrun(args.device)
    if flags_as_settings(args, axes_of(args)).get("shard"):
        require_sharding(dist.get_world_size() if under_torchrun else args.num_gpus)
    if args.pretrained_weights is not None:
        # A wrong name, or no checkpoint, shows now, not after hours of preprocessing.
        read_checkpoint(resolve_once_per_machine(args.pretrained_weights).path)
    rehearse_unseen(args)
    with first_process_first(), nobody_else_in_folder(args):
        plans, plans_name = prepare(args)
    plans, folder = plans_and_folder(args, plans, plans_name)
    final = join(folder, "checkpoint_final.pth")
    fold = args.fold if args.fold == "all" else int(args.fold)
    settings, _ = PretrainBlock.read(
        plans["configurations"][args.configuration], method_names(), args.configuration
    ).of(args.method, get_method(args.method).Config)
    if launch.is_finished(folder, args.epochs, settings.early_stop):
        datasets = [plans["dataset_name"], *settings.datasets]
        print(
            f"This pre-training is finished. More epochs: --epochs N --continue. To start anew: --run-name NAME, or move "
            f"{folder} away.\n{next_commands(datasets, plans['plans_name'], args.configuration, fold, final)}"
        )
        return
    dataset_json = read_json(join(nnUNet_preprocessed, plans["dataset_name"], "dataset.json"))
    job = launch.Run(
        plans, args.configuration, fold, dataset_json, args.method, args.device, args.pretrained_weights, args.stem
    )
    if args.estimate:
        print(benchmark_table(benchmark(job, processes=args.num_gpus)))
        return
    launch.launch(job, 1 if under_torchrun else args.num_gpus)
    if under_torchrun:
        dist.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    """Entry point of nnUNetv2_pretrain and of `python -m nnunet_ssl.pretrain`."""
    from nnunet_ssl.cli.errors import one_line_errors
    from nnunet_ssl.corpus.environment import environment
    from nnunet_ssl.corpus.images import TEST_IMAGES
    from nnunet_ssl.signals import start_tracker

    args = build_parser().parse_args(argv)
    start_tracker()
    with one_line_errors("nnUNetv2_pretrain"), environment({TEST_IMAGES: "1"} if args.with_test_images else {}):
        run(args)


if __name__ == "__main__":
    main()
