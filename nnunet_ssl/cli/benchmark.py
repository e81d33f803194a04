"""nnUNetv2_pretrain_benchmark: how fast a pre-training is here, where its time goes, and what a whole run costs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnunet_ssl.cli.flag_settings import WHERE, flags_as_settings
from nnunet_ssl.cli.nnunet_words import add_dataset, take_dataset
from nnunet_ssl.cli.parser import CommandParser, one_of, whole
from nnunet_ssl.cli.pretrain_flags import BACKBONES, apply_flags, check_flags
from nnunet_ssl.cli.pretrain_flags import build_parser as build_pretrain_parser
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.methods import get_method, method_names, views_of
from nnunet_ssl.settings.blocks import PretrainBlock

if TYPE_CHECKING:
    from nnunet_ssl.report.benchmark import Benchmark

EXAMPLES = (
    "nnUNetv2_pretrain_benchmark --method mae --backbone resenc_l                         no data needed",
    "nnUNetv2_pretrain_benchmark 745 --method mae --backbone primus_m --workers 16       data set 745, preprocessed before",
    "nnUNetv2_pretrain_benchmark --backbone primus_tiny --patch-size 64 --batch-size 2 -device cpu",
    "nnUNetv2_pretrain_benchmark 745 --json benchmark.json --picture benchmark.png",
)
NOTES = """\
Runs the real trainer for a few iterations and keeps nothing of them. Without a data set, artificial images of 1.25 patches per
axis are written to a temporary folder (TMPDIR), in the format of nnU-Net's preprocessing. What the figures mean and how to act
on them: docs/benchmark.md."""


def build_parser() -> CommandParser:
    """All flags with their help."""
    parser = CommandParser(
        "nnUNetv2_pretrain_benchmark",
        "[DATASET] [flags]",
        "Measure a pre-training: samples per second, where the time goes, peak memory, arithmetic against what "
        "the device can do, and what a whole run costs.",
        EXAMPLES,
        NOTES,
        greets=False,
        understand=lambda args: take_dataset(args, required=False),
    )
    add_dataset(parser, required=False)
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--method", default="mae", type=one_of(method_names), metavar="M", help="pretext task (default: mae)"
    )
    what.add_argument("--backbone", type=one_of(sorted(BACKBONES)), metavar="B", help="network (default: resenc_l)")
    what.add_argument("-p", dest="plans", metavar="PLANS", help="these plans of DATASET instead of --backbone's")
    what.add_argument(
        "-c", dest="configuration", metavar="CONFIGURATION", default="3d_fullres", help="default: 3d_fullres"
    )
    what.add_argument(
        "--patch-size", type=whole, nargs="+", metavar="N", help="voxels per axis, one or as many as axes"
    )
    what.add_argument("--batch-size", type=whole, metavar="N", help="default: the recipe's")
    what.add_argument("--epochs", type=whole, metavar="N", help="length of the run that is estimated")
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting of the ssl block, e.g. --set accumulate=2 or --set mae.mask_ratio=0.6",
    )
    how = parser.add_argument_group("how to measure")
    how.add_argument("--iterations", type=whole, default=20, metavar="N", help="end to end (default: 20)")
    how.add_argument(
        "--warmup", type=whole, default=3, metavar="N", help="before; never fewer than are loaded ahead (default: 3)"
    )
    how.add_argument("--workers", type=whole, metavar="N", help="reading processes (default: nnU-Net's choice)")
    how.add_argument(
        "-device", default="cuda", type=one_of(("cuda", "cpu"), guess=False), metavar="cuda|cpu", help="default: cuda"
    )
    where = parser.add_argument_group("what to write")
    where.add_argument("--json", metavar="FILE", help="all figures")
    where.add_argument("--picture", metavar="FILE.png", help="bars")
    own = vars(parser.parse_args([]))
    others = vars(build_pretrain_parser().parse_args(["-"]))
    parser.set_defaults(**{name: default for name, default in others.items() if name not in own})  # for apply_flags
    return parser


def check(args: argparse.Namespace) -> None:
    """Raise SettingsError for flags that cannot be right."""
    if args.plans and not args.dataset:
        raise SettingsError("-p names plans of a data set. Name the data set as well, or use --backbone.")
    check_flags(args)
    if args.workers is not None and args.workers < 0:
        raise SettingsError(f"--workers wants 0 or more, found {args.workers}.")
    if args.patch_size is not None and len(args.patch_size) == 1 and not args.dataset:
        args.patch_size = args.patch_size * 3
    kind = "primus" if "primus" in (args.backbone or "resenc_l") else "unet"
    kinds = get_method(args.method).backbones
    if not args.plans and kind not in kinds:
        fitting = [name for name in BACKBONES if ("primus" if "primus" in name else "unet") in kinds]
        raise SettingsError(f"{args.method} does not work on {args.backbone}. Use --backbone {' or '.join(fitting)}.")
    for path in filter(None, (args.json, args.picture)):
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(folder):
            raise SettingsError(f"There is no folder {folder} for {path}. Make it, or name another one.")


def say(message: str) -> None:
    """Tell what happens, beside the result."""
    print(f"{message} ...", file=sys.stderr, flush=True)


def measure(args: argparse.Namespace, folder: str) -> Benchmark:
    """Benchmark the data set, or artificial images in `folder`."""
    from nnunetv2.paths import nnUNet_preprocessed

    from nnunet_ssl.corpus.datasets import load_configuration, load_plans, resolve_datasets
    from nnunet_ssl.files.entering import read_json
    from nnunet_ssl.planners import ssl_planner
    from nnunet_ssl.planners.synthetic import synthetic_dataset
    from nnunet_ssl.trainers.launch import Run
    from nnunet_ssl.trainers.profiling.benchmark import Effort, benchmark

    planner = BACKBONES[args.backbone or "resenc_l"]
    effort = Effort(args.iterations, args.warmup)

    def of_plans(plans: dict[str, Any]) -> Benchmark:
        load_configuration(plans, args.configuration)
        apply_flags(plans, args)
        dataset_json = read_json(os.path.join(nnUNet_preprocessed, plans["dataset_name"], "dataset.json"))
        return benchmark(Run(plans, args.configuration, "all", dataset_json, args.method, args.device), effort, say=say)

    def region_of(patch_size: Sequence[int]) -> tuple[int, ...]:
        cls = get_method(args.method)
        config: Any
        flags = flags_as_settings(args, len(patch_size))
        _, config = PretrainBlock.split(flags, method_names(), WHERE, len(patch_size)).of(args.method, cls.Config)
        return views_of(cls, config, patch_size).region_size

    if args.dataset:
        (name,) = resolve_datasets([args.dataset])
        return of_plans(load_plans(name, args.plans or getattr(ssl_planner, planner).default_plans_name))
    say("writing artificial images")
    with synthetic_dataset(folder, planner, args.patch_size, region_of) as plans:
        return of_plans(plans)


def run(args: argparse.Namespace) -> None:
    """Measure, and show."""
    from tempfile import TemporaryDirectory

    from torch import device

    from nnunet_ssl.corpus.environment import environment
    from nnunet_ssl.files.atomic import write_json
    from nnunet_ssl.files.folders import require_writable
    from nnunet_ssl.report.benchmark_table import benchmark_table, draw_benchmark
    from nnunet_ssl.trainers.device.devices import require_device

    check(args)
    require_writable(*(os.path.dirname(path) for path in (args.json, args.picture) if path))
    require_device(device(args.device))
    with (
        TemporaryDirectory() as folder,
        environment({} if args.workers is None else {"nnUNet_n_proc_DA": str(args.workers)}),
    ):
        result = measure(args, folder)
    print(benchmark_table(result))
    if args.json:
        write_json(result.to_json(), args.json)
        print(f"\nAll figures: {args.json}")
    if args.picture:
        draw_benchmark(result, args.picture)
        print(f"The picture: {args.picture}")


def main(argv: list[str] | None = None) -> None:
    """Entry point of nnUNetv2_pretrain_benchmark."""
    from nnunet_ssl.cli.errors import one_line_errors

    args = build_parser().parse_args(argv)
    with one_line_errors(
        "nnUNetv2_pretrain_benchmark", "Nothing was measured to its end; the same command begins anew."
    ):
        run(args)


if __name__ == "__main__":
    main()
