"""The flags of nnUNetv2_pretrain: what they are called, what they may be, and how they become settings of the plans."""

from __future__ import annotations

import argparse
import re
from typing import Any

from nnunet_ssl.cli.flag_settings import check_settings, flags_as_settings
from nnunet_ssl.cli.logger_flags import add_loggers
from nnunet_ssl.cli.nnunet_words import DEFAULT, add_dataset, add_device, method_of_trainer, take_words
from nnunet_ssl.cli.parser import CommandParser, number, one_of, whole
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
EXAMPLES = (
    "nnUNetv2_pretrain 4                                                       the recommended method and network",
    "nnUNetv2_pretrain 4 745 --method mae --backbone primus_m --num-gpus 4     two data sets, one corpus",
    "nnUNetv2_pretrain 4 --backbone resenc_tiny --epochs 5 -device cpu         to try it, without a GPU",
    "nnUNetv2_pretrain 4 -p nnUNetResEncUNetLPlans                             the plans the target already has",
    "torchrun --nnodes 4 --nproc-per-node 8 -m nnunet_ssl.pretrain 745 --backbone primus_m",
)
NOTES = """The same command again continues where it stopped. The flags under "recipe" are written into the `ssl` block of the
plans.json in the result folder; the plans in nnUNet_preprocessed stay as they are. A command that asks for other settings than
that folder holds ends with the list of them: add --continue to go on with the run that is there, or --run-name NAME for one
beside it. Ctrl-C, SIGTERM and SIGUSR1 save at once; SIGUSR2, or a file FINISH_EPOCH in the result folder, after the epoch."""
DEFAULT_METHOD = "mae"


def build_parser() -> CommandParser:
    """All flags with their help."""
    parser = CommandParser(
        "nnUNetv2_pretrain",
        "DATASET [DATASET ...] [flags]",
        "Pre-train a network without labels. Does what is missing of fingerprint, planning and preprocessing, then trains; "
        "labels are not needed, and not used where they exist.",
        EXAMPLES,
        NOTES,
        understand=understand,
    )
    add_dataset(parser, several=True)
    add_usual_flags(parser)
    add_data_flags(parser)
    add_recipe_flags(parser)
    add_flags_of_saving(parser)
    add_machine_flags(parser)
    add_loggers(parser)
    return parser


def add_usual_flags(parser: CommandParser) -> None:
    """What most commands need."""
    usual = parser.usual
    usual.add_argument(
        "--method", type=one_of(method_names), metavar="M", help=f"pretext task (default: {DEFAULT_METHOD})"
    )
    usual.add_argument(
        "--backbone",
        type=one_of(sorted(BACKBONES)),
        metavar="B",
        help=f"network with plans made for it: {', '.join(BACKBONES)} (default: resenc_l)",
    )
    usual.add_argument("-p", dest="plans", metavar="PLANS", help="use these existing plans instead of --backbone")
    usual.add_argument("--epochs", type=whole, metavar="N", help="length of the run")
    usual.add_argument("--batch-size", type=whole, metavar="N", help="over all processes")
    usual.add_argument(
        "-pretrained_weights",
        metavar="X",
        help="start from this checkpoint: a file or its folder, ORG/NAME on the Hugging Face Hub, or a name that "
        "nnUNetv2_pretrain_models lists",
    )
    add_device(usual)
    usual.add_argument(
        "--num-gpus", "-num_gpus", type=whole, default=1, metavar="N", help="processes on this machine (default: 1)"
    )
    usual.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting of docs/settings.md, e.g. --set optimizer=adamw or --set mae.mask_block=8",
    )
    usual.add_argument(
        "--estimate",
        action="store_true",
        help="print which batch fits which GPU, by counting, and what the whole run will cost, and stop; measures a few steps "
        "where -device is there, and needs neither device nor images for the rest",
    )


def add_data_flags(parser: CommandParser) -> None:
    """Which images, and how they are prepared."""
    data = parser.add_argument_group("data")
    data.add_argument("-c", dest="configuration", metavar="CONFIGURATION", help="default: 3d_fullres")
    data.add_argument("-f", dest="fold", metavar="FOLD", help="all (default), or the fold whose training images to use")
    data.add_argument(
        "--spacing",
        default="onemmiso",
        type=one_of(("onemmiso", "median", "noresample")),
        metavar="S",
        help="onemmiso: 1 mm (default), median: the data's, noresample: each image as it is",
    )
    data.add_argument(
        "--channels",
        type=one_of(("separate", "together")),
        metavar="C",
        help="several channels: separate, each a sample of its own (default), or together, as one image",
    )
    data.add_argument(
        "--normalization",
        type=one_of(("nnunet", "per_image")),
        metavar="N",
        help="nnunet: its schemes per channel (default), or per_image, by its modality",
    )
    data.add_argument(
        "--storage",
        type=one_of(("float32", "float16")),
        metavar="TYPE",
        help="of preprocessed images: float32 (default) or float16",
    )
    data.add_argument(
        "--with-test-images",
        action="store_true",
        help="also pre-train on imagesTs (off by default: if they are to judge the result, the network has seen them)",
    )
    data.add_argument(
        "--filter",
        metavar="EXPR",
        help='only images of the corpus table that match, e.g. \'modality in ("T1w", "T2w") and slices >= 32\'',
    )
    data.add_argument(
        "--sampling",
        type=one_of(SAMPLING),
        metavar="WHAT",
        help=f"what is drawn with equal chances: {', '.join(SAMPLING)} (default: images)",
    )


def add_recipe_flags(parser: CommandParser) -> None:
    """Settings that have flags of their own; the default is the published recipe of method and backbone."""
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--stem",
        metavar="ID",
        help="of -pretrained_weights with a stem for every data set: its id or number, or mean (of all)",
    )
    recipe.add_argument("--iterations-per-epoch", type=whole, metavar="N", help="default: 250")
    recipe.add_argument("--val-iterations-per-epoch", type=whole, metavar="N", help="default: 50")
    recipe.add_argument(
        "--accumulate",
        type=whole,
        metavar="N",
        help="micro-batches in which a process' share of the batch goes through the network: less memory, same result",
    )
    recipe.add_argument(
        "--recompute",
        action="store_true",
        default=None,
        help="forget activations and compute them again in the backward pass: less memory, about a third more time",
    )
    recipe.add_argument(
        "--patch-size", type=whole, nargs="+", metavar="N", help="voxels per axis, one or as many as axes"
    )
    recipe.add_argument("--lr", type=number, metavar="X", help="highest learning rate")
    recipe.add_argument("--mask-ratio", type=number, metavar="X", help="share of hidden blocks or tokens")
    recipe.add_argument("--seed", type=whole, metavar="N", help="of everything that is drawn (default: 0)")


def add_flags_of_saving(parser: CommandParser) -> None:
    """When a run is saved, when it ends, and how it goes on."""
    saving = parser.add_argument_group("saving and ending")
    saving.add_argument("--save-every", type=whole, metavar="N", help="epochs between two checkpoints (default: 10)")
    saving.add_argument(
        "--early-stop",
        type=whole,
        metavar="N",
        help="end, as a finished run, when the validation loss has not become lower for N epochs",
    )
    saving.add_argument(
        "--stop-on-collapse",
        action="store_true",
        default=None,
        help="end with exit code 4 where the run learns nothing, or its embeddings collapse, after a tenth of it",
    )
    saving.add_argument(
        "--probe",
        metavar="DATASET",
        help="to see when to stop: every few epochs a linear model tells the labels of this data set, or its targets.csv, from "
        "the frozen features",
    )
    saving.add_argument("--probe-every", type=whole, metavar="N", help="epochs between two probes (default: 10)")
    saving.add_argument(
        "--preview-nifti",
        action="store_true",
        default=None,
        help="previews also as NIfTI images, beside the pictures",
    )
    saving.add_argument(
        "--run-name",
        metavar="NAME",
        help="a run beside the others: its folder is TRAINER__PLANS_NAME__CONFIGURATION, with plans of that name in it",
    )
    saving.add_argument(
        "--continue",
        "--c",
        dest="go_on",
        action="store_true",
        help="go on with the run in the result folder although its settings differ from what is asked for now; needed only then. "
        "What the flags set is changed: its length (--epochs), and how it is computed",
    )


def add_machine_flags(parser: CommandParser) -> None:
    """Where and how it is computed."""
    machine = parser.add_argument_group("machine")
    machine.add_argument("-tr", dest="trainer", metavar="TRAINER", help="the same as --method, by its nnU-Net trainer")
    machine.add_argument(
        "--shard",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="networks too big for one device: spread weights, gradients and optimiser over the processes",
    )
    machine.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="on a GPU: deterministic algorithms, for runs that are repeated and continued bit by bit as on a CPU; slower",
    )
    machine.add_argument(
        "--preprocess-only",
        action="store_true",
        help="prepare the images and stop; any number of machines can do so at once",
    )
    machine.add_argument(
        "-np", dest="num_processes", type=whole, default=8, metavar="N", help="for preprocessing (default: 8)"
    )


def understand(args: argparse.Namespace) -> None:
    """Sort the words that belong to no flag, find the method of a trainer, fill in what has a default.

    Raises SettingsError for what contradicts itself.
    """
    words = take_words(args)
    if not words.datasets:
        raise SettingsError("which data set? Type its number or name behind the command, e.g. nnUNetv2_pretrain 4")
    if len(words.folds) > 1 or (words.folds and args.fold not in (None, words.folds[0])):
        raise SettingsError(
            f"one run has one fold, found {', '.join(dict.fromkeys(filter(None, [*words.folds, args.fold])))}"
        )
    args.datasets = words.datasets
    args.configuration = args.configuration or words.configuration or DEFAULT
    args.fold = args.fold or (words.folds[0] if words.folds else "all")
    if args.trainer is not None:
        method = method_of_trainer(args.trainer, method_names())
        if args.method not in (None, method):
            raise SettingsError(
                f"--method {args.method} and -tr {args.trainer} contradict each other. Leave one of them out"
            )
        args.method = method
    args.method = args.method or DEFAULT_METHOD
    del args.trainer


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
