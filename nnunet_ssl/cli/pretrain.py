"""nnUNetv2_pretrain: from data set ids to a pre-trained network in one command."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from typing import Any

# Before torch starts its threads: on a CPU, threads that wait actively take the cores from those that read the data.
# With two cores and one reading process a training step then takes several times as long (benchmarks/LOG.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from nnunet_ssl.cli.flag_settings import check_settings, flags_as_settings
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.settings.allowed import AXES
from nnunet_ssl.settings.blocks import SAMPLING, PretrainBlock

BACKBONES = {
    "resenc_l": "SSLPlannerResEncL",
    "primus_m": "SSLPlannerPrimusM",
    "resenc_tiny": "SSLPlannerResEncTiny",
    "primus_tiny": "SSLPlannerPrimusTiny",
}
EXAMPLES = """examples:
  nnUNetv2_pretrain 4 --method mae --backbone resenc_l
  nnUNetv2_pretrain 4 745 --method mae --backbone primus_m --num-gpus 4       two data sets, one corpus
  nnUNetv2_pretrain 4 --method mae -p nnUNetResEncUNetLPlans                  the plans the target already has
  nnUNetv2_pretrain 4 --method mae --backbone resenc_tiny --epochs 5 -device cpu
  torchrun --nnodes 4 --nproc-per-node 8 -m nnunet_ssl.pretrain 745 --method mae --backbone primus_m

Run the same command again and it continues where it stopped. The flags under "recipe" are written into the `ssl` block of
the plans.json in the result folder; the plans in nnUNet_preprocessed stay as they are. A command that asks for other settings
than that folder holds ends with the list of them: add --continue to go on with the run that is there, or --run-name NAME for
one beside it. Ctrl-C, SIGTERM and SIGUSR1 save at once; SIGUSR2, or a file FINISH_EPOCH in the result folder, after the epoch."""


def build_parser() -> argparse.ArgumentParser:
    """All flags with their help."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_pretrain",
        description="Pre-train a network without labels. Does what is missing of fingerprint, planning and "
        "preprocessing, then trains; labels are not needed, and not used where they exist.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help="data set ids or names; several form one corpus")
    what = parser.add_argument_group("what to train")
    what.add_argument("--method", default="mae", choices=method_names(), help="pretext task (default: mae)")
    what.add_argument(
        "--backbone", choices=sorted(BACKBONES), help="network with plans made for it (default: resenc_l)"
    )
    what.add_argument("-p", dest="plans", metavar="PLANS", help="use these existing plans instead of --backbone")
    what.add_argument(
        "-c", dest="configuration", metavar="CONFIGURATION", default="3d_fullres", help="default: 3d_fullres"
    )
    what.add_argument(
        "-f", dest="fold", metavar="FOLD", default="all", help="all (default), or the fold whose training images to use"
    )
    what.add_argument(
        "--spacing",
        default="onemmiso",
        choices=("onemmiso", "median", "noresample"),
        help="1 mm (default), the data's median, or each image as it is",
    )
    what.add_argument(
        "--channels",
        choices=("separate", "together"),
        help="several channels: each a sample of its own (default), or one image",
    )
    what.add_argument(
        "--normalization",
        choices=("nnunet", "per_image"),
        help="nnU-Net's schemes per channel (default), or per image by its modality",
    )
    what.add_argument("--storage", choices=("float32", "float16"), help="of preprocessed images (default: float32)")
    what.add_argument(
        "--with-test-images",
        action="store_true",
        help="also pre-train on imagesTs (off by default: if they are to judge the result, the network has seen them)",
    )
    what.add_argument(
        "--filter",
        metavar="EXPR",
        help='only images of the corpus table that match, e.g. \'modality in ("T1w", "T2w") and slices >= 32\'',
    )
    what.add_argument(
        "--sampling",
        choices=SAMPLING,
        help="what is drawn with equal chances: images (default), subjects, modalities or data sets",
    )
    what.add_argument(
        "-pretrained_weights",
        metavar="WEIGHTS",
        help="start from this checkpoint: a file or its folder, ORG/NAME on the Hugging Face Hub, or a name that "
        "nnUNetv2_pretrain_models lists",
    )
    what.add_argument(
        "--run-name",
        metavar="NAME",
        help="a run beside the others: its folder is TRAINER__PLANS_NAME__CONFIGURATION, with plans of that name in it",
    )
    what.add_argument(
        "--continue",
        "--c",
        dest="go_on",
        action="store_true",
        help="go on with the run in the result folder although its settings differ from what is asked for now; needed only then. "
        "What the flags set is changed: its length (--epochs), and how it is computed",
    )
    recipe = parser.add_argument_group("recipe (default: the published one of method and backbone)")
    recipe.add_argument("--epochs", type=int, metavar="N")
    recipe.add_argument("--iterations-per-epoch", type=int, metavar="N")
    recipe.add_argument("--val-iterations-per-epoch", type=int, metavar="N")
    recipe.add_argument("--batch-size", type=int, metavar="N", help="over all processes")
    recipe.add_argument(
        "--accumulate",
        type=int,
        metavar="N",
        help="parts in which a process' share of the batch goes through the network: less memory, same result",
    )
    recipe.add_argument(
        "--recompute",
        action="store_true",
        default=None,
        help="forget activations and compute them again in the backward pass: less memory, about a third more time",
    )
    recipe.add_argument(
        "--patch-size", type=int, nargs="+", metavar="N", help="voxels per axis, one or as many as axes"
    )
    recipe.add_argument("--lr", type=float, metavar="X")
    recipe.add_argument("--mask-ratio", type=float, metavar="X", help="share of hidden blocks or tokens")
    recipe.add_argument("--seed", type=int, metavar="N")
    recipe.add_argument(
        "--stop-on-collapse",
        action="store_true",
        default=None,
        help="end with exit code 4 where the run learns nothing, or its embeddings collapse, after a tenth of it",
    )
    recipe.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting of the ssl block, e.g. --set optimizer=adamw or --set mae.mask_block=8",
    )
    where = parser.add_argument_group("where to train")
    where.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"), help="default: cuda")
    where.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    where.add_argument(
        "--shard",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="networks too big for one device: spread weights, gradients and optimiser over the processes",
    )
    where.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="on a GPU: deterministic algorithms, for runs that are repeated and continued bit by bit as on a CPU; slower",
    )
    where.add_argument(
        "--preprocess-only",
        action="store_true",
        help="prepare the images and stop; any number of machines can do so at once",
    )
    where.add_argument(
        "--estimate",
        action="store_true",
        help="print which batch fits which GPU, by counting, and what the whole run will cost, and stop; measures a few steps "
        "where -device is there, and needs neither device nor images for the rest",
    )
    where.add_argument(
        "-np", dest="num_processes", type=int, default=8, metavar="N", help="for preprocessing (default: 8)"
    )
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Raise SettingsError for flags that cannot be right, before hours go into preprocessing."""
    if args.plans and args.backbone:
        raise SettingsError("-p names existing plans, --backbone makes new ones. Use one of the two.")
    if args.plans and (args.normalization or args.storage):
        raise SettingsError(
            "--normalization and --storage are for new plans; -p names existing ones, which stay as they are."
        )
    if args.fold != "all" and not args.fold.isdigit():
        raise SettingsError(f'-f wants "all" or the number of a fold, found {args.fold!r}.', found=args.fold)
    if args.run_name is not None and not re.fullmatch(r"[A-Za-z0-9.-]+(_[A-Za-z0-9.-]+)*", args.run_name):
        raise SettingsError(
            f"--run-name becomes part of a folder's name: letters, digits, points, dashes and single underscores between "
            f"them, found {args.run_name!r}.",
            found=args.run_name,
        )
    check_settings(args, axes_of(args))


def axes_of(args: argparse.Namespace) -> int:
    """Axes of the patches of the plans that the flags name."""
    if args.plans is None:
        return AXES
    from nnunet_ssl.corpus.datasets import load_configuration
    from nnunet_ssl.planners.plans_check import require_complete
    from nnunet_ssl.planners.to_estimate import plans_to_estimate

    datasets = [args.dataset] if "dataset" in args else args.datasets
    plans, _ = plans_to_estimate(datasets, None, args.plans, args.spacing, args.normalization, args.storage)
    entries = load_configuration(plans, args.configuration)
    require_complete(plans, entries, args.configuration)
    return len(entries["patch_size"])


def apply_flags(plans: dict[str, Any], args: argparse.Namespace) -> None:
    """Write the flags into the plans of this run."""
    configuration = plans["configurations"][args.configuration]
    axes = len(configuration["patch_size"])
    block = configuration.setdefault("ssl", {})
    PretrainBlock.read(configuration, method_names(), args.configuration).of(
        args.method, get_method(args.method).Config
    )
    own = block.get(args.method, {})
    for key, value in flags_as_settings(args, axes).items():
        if key in own:  # the plans have a value of this task's own, which would win
            own[key] = value
        else:
            block[key] = {**block.get(key, {}), **value} if isinstance(value, dict) else value
    if args.patch_size is not None:
        size = args.patch_size * axes if len(args.patch_size) == 1 else args.patch_size
        if len(size) != axes or min(size) < 1:
            raise SettingsError(
                f"--patch-size wants 1 or {axes} whole numbers >= 1 for {args.configuration}, found {size}.", found=size
            )
        configuration["patch_size"] = size


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

    from nnunet_ssl.cli.rehearsal import rehearse_unseen
    from nnunet_ssl.cli.result_folder import nobody_else_in_folder, plans_and_folder
    from nnunet_ssl.corpus.folders import require_folder
    from nnunet_ssl.files.entering import read_json
    from nnunet_ssl.files.folders import require_writable
    from nnunet_ssl.integration.pretrained_weights import resolve_once_per_machine
    from nnunet_ssl.report.benchmark_table import table
    from nnunet_ssl.trainers import launch
    from nnunet_ssl.trainers.device.devices import require_device
    from nnunet_ssl.trainers.distributed.processes import first_process_first
    from nnunet_ssl.trainers.distributed.sharding import require_sharding
    from nnunet_ssl.trainers.profiling.benchmark import benchmark

    check_flags(args)
    if args.preprocess_only:
        _, name = prepare(args)
        print(f"Everything is prepared for the plans {name}. The same command without --preprocess-only trains.")
        return
    if args.estimate and not estimate(args):
        return
    require_device(device(args.device))
    if not args.estimate:
        require_writable(require_folder("nnUNet_results"))
    under_torchrun = launch.join_torchrun(args.device)
    if flags_as_settings(args, axes_of(args)).get("shard"):
        require_sharding(dist.get_world_size() if under_torchrun else args.num_gpus)
    if args.pretrained_weights is not None:
        resolve_once_per_machine(args.pretrained_weights)  # a wrong name shows now, not after hours of preprocessing
    rehearse_unseen(args)
    with first_process_first(), nobody_else_in_folder(args):
        plans, plans_name = prepare(args)
    plans, folder = plans_and_folder(args, plans, plans_name)
    final = join(folder, "checkpoint_final.pth")
    if launch.is_finished(folder, args.epochs):
        print(
            f"This pre-training is finished: {final}\nMore epochs: --epochs N --continue. To start anew: --run-name NAME, "
            f"or move {folder} away."
        )
        return
    fold = args.fold if args.fold == "all" else int(args.fold)
    dataset_json = read_json(join(nnUNet_preprocessed, plans["dataset_name"], "dataset.json"))
    job = launch.Run(plans, args.configuration, fold, dataset_json, args.method, args.device, args.pretrained_weights)
    if args.estimate:
        print(table(benchmark(job, processes=args.num_gpus)))
        return
    launch.launch(job, 1 if under_torchrun else args.num_gpus)
    if not under_torchrun or dist.get_rank() == 0:
        print(next_commands({**plans, "plans_name": plans_name}, args.configuration, final))
    if under_torchrun:
        dist.destroy_process_group()


def next_commands(plans: dict[str, Any], configuration: str, checkpoint: str) -> str:
    """What to type after the pre-training."""
    from nnunet_ssl.corpus.dataset_names import dataset_id

    dataset, name = dataset_id(plans["dataset_name"]), plans["plans_name"]
    return (
        f"\nThe pre-trained network: {checkpoint}\nFine-tune it on a labelled data set with the same plans, e.g.\n"
        f"  nnUNetv2_train {dataset} {shlex.quote(configuration)} 0 -tr SSLFinetuneTrainer -p {shlex.quote(name)} "
        f"-pretrained_weights {shlex.quote(checkpoint)}"
    )


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
