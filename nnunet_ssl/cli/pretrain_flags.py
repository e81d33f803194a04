"""The flags of nnUNetv2_pretrain: what they are called, what they may be, and how they become settings of the plans."""

from __future__ import annotations

import argparse
import re
from typing import Any

from nnunet_ssl.cli.flag_settings import check_settings, flags_as_settings
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.settings.allowed import AXES
from nnunet_ssl.settings.blocks import SAMPLING, PretrainBlock

BACKBONES = {
    "resenc_l": "SSLPlannerResEncL",
    "primus_m": "SSLPlannerPrimusM",
    "primus_x": "SSLPlannerPrimusX",
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
        "--stem",
        metavar="ID",
        help="of -pretrained_weights with a stem for every data set: its id or number, or mean (of all)",
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
    if args.stem is not None and args.pretrained_weights is None:
        raise SettingsError("--stem chooses among the stems of -pretrained_weights X, and none are given.")
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
