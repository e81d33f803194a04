"""nnUNetv2_pretrain_compare: does pre-training help on these data? Trains, predicts, scores, and writes a page."""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ssl.cli.nnunet_words import add_dataset, add_device, take_words
from nnunet_ssl.cli.parser import CommandParser, number, one_of, whole
from nnunet_ssl.errors import SettingsError

if TYPE_CHECKING:
    from nnunet_ssl.comparison.description import Description

METRICS, KEEP = ("Dice", "NSD", "HD95"), ("models", "predictions", "scores")
ADAPT = ("like_pretrained", "like_dataset", "no_resample")
EXAMPLES = (
    "nnUNetv2_pretrain_compare 4 -pretrained_weights mae.pth",
    "nnUNetv2_pretrain_compare -d 4 7 -pretrained_weights mae.pth voco.pth AnonRes/ResEncL-OpenMind-MAE \\\n"
    "      -f 0 1 2 3 4 --seeds 3 --labelled 10 50 all --epochs 150 -o comparison",
    "nnUNetv2_pretrain_compare -o comparison",
)
NOTES = """A cell is one training: a data set, an arm, a fold, a seed, a number of labelled cases. Each trains by nnU-Net's own
training, predicts and scores the held-out cases of its fold, and is recorded in OUT/cells. The same command again, or with -o
OUT alone, goes on where it stopped: finished cells stay, interrupted ones continue from their last checkpoint, failed ones are
tried again. Any number of processes and machines may work on one folder; each cell is trained once. Ctrl-C, SIGTERM and SIGUSR1
save and end.

Arms: scratch (SSLScratchTrainer), every checkpoint of -pretrained_weights (SSLFinetuneTrainer, or -tr), and with --dynamic
nnU-Net's own trainer and plans. All share schedule, folds, seeds and cases; and plans, where their networks are the same.
OUT/comparison.json describes all of it; arms, folds, seeds and numbers of labels may be added to it at any time.

In a SLURM array: examples/cluster/compare.slurm. More: docs/comparing.md."""


def build_parser() -> CommandParser:
    """All flags with their help."""
    parser = CommandParser(
        "nnUNetv2_pretrain_compare",
        "DATASET [DATASET ...] -pretrained_weights X [X ...] -o OUT [flags]",
        "Is pre-training worth it? Trains from the checkpoints and from scratch on the same cases, tests on held-out ones, and "
        "writes scores.csv and a page that answers.",
        EXAMPLES,
        NOTES,
        understand=understand,
    )
    add_dataset(parser, what="numbers or names of data sets with labels")
    usual = parser.usual
    usual.add_argument(
        "-pretrained_weights",
        dest="weights",
        nargs="+",
        default=[],
        metavar="X",
        help="checkpoints, each a file or a model on the Hugging Face Hub; NAME=X names the arm",
    )
    usual.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="folds to test on (default: 0)")
    usual.add_argument(
        "--seeds", type=whole, metavar="N", help="trainings of everything, with seeds 0, 1, ... (default: 1)"
    )
    usual.add_argument(
        "--labelled",
        nargs="+",
        type=labelled,
        metavar="N",
        help="numbers of labelled training cases, and all (default: all)",
    )
    usual.add_argument("--epochs", type=whole, metavar="N", help="of every training (default: the trainer's, 1000)")
    usual.add_argument("-o", dest="output", default="comparison", metavar="OUT", help="folder (default: comparison)")
    add_device(usual)
    arms = parser.add_argument_group("arms")
    arms.add_argument("-tr", dest="trainer", metavar="TRAINER", help="of the checkpoints (default: SSLFinetuneTrainer)")
    arms.add_argument("-p", dest="plans", metavar="PLANS", help="existing plans of the data sets instead of new ones")
    arms.add_argument("--adapt", type=one_of(ADAPT), metavar="HOW", help=f"of new plans: {', '.join(ADAPT)}")
    arms.add_argument("-c", dest="configuration", metavar="CONFIGURATION", help="default: 3d_fullres")
    arms.add_argument(
        "--dynamic",
        dest="stock",
        nargs="?",
        const="nnUNetPlans",
        metavar="PLANS",
        help="one more arm: nnUNetTrainer with nnU-Net's plans (default: nnUNetPlans)",
    )
    arms.add_argument("--no-scratch", action="store_true", help="leave out the twin from random weights")
    arms.add_argument("--protocol", metavar="NAME", help="a published one: data sets, schedule and folds of a paper")
    more = parser.add_argument_group("training and scores")
    more.add_argument("--iterations-per-epoch", type=whole, metavar="N", help="default: 250")
    more.add_argument("--batch-size", type=whole, metavar="N", help="default: that of the plans")
    more.add_argument(
        "--metrics", nargs="+", type=one_of(METRICS), metavar="M", help="of Dice NSD HD95 (default: Dice NSD)"
    )
    more.add_argument("--tolerance", dest="tolerance_mm", type=number, metavar="MM", help="of NSD (default: 1)")
    more.add_argument("--keep", type=one_of(KEEP), metavar="WHAT", help="models, predictions (default) or scores")
    more.add_argument("--num-gpus", "-num_gpus", type=whole, default=1, metavar="N", help="for each cell (default: 1)")
    more.add_argument(
        "-np", dest="num_processes", type=whole, default=8, metavar="N", help="to preprocess (default: 8)"
    )
    how = parser.add_argument_group("which cells, and where")
    how.add_argument(
        "--list", dest="show", action="store_true", help="print the cells with their numbers and states, and end"
    )
    how.add_argument("--run", nargs="+", type=whole, metavar="K", help="only the cells of these numbers")
    how.add_argument(
        "--dry-run", action="store_true", help="print cells, commands, and an estimate of time and disk; train nothing"
    )
    how.add_argument("--report", action="store_true", help="make scores.csv and the page anew from the files, and end")
    how.add_argument(
        "--dask", metavar="ADDRESS", help="work on all workers of a Dask cluster (local: one on this machine)"
    )
    return parser


def labelled(text: str) -> int | str:
    """A number of cases, or all."""
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'wants numbers of cases or "all", found {text!r}') from None


def understand(args: argparse.Namespace) -> None:
    """Sort the words that belong to no flag; raises SettingsError for what cannot be right or contradicts itself."""
    words = take_words(args)
    args.datasets, args.configuration = words.datasets, args.configuration or words.configuration
    folds = list(dict.fromkeys([*(args.folds or []), *words.folds]))
    if "all" in folds:
        raise SettingsError("fold all trains on every case, and leaves none to test on. Use -f 0, or several")
    wrong = [fold for fold in folds if not fold.isdecimal()]
    if wrong:
        raise SettingsError(f"-f wants numbers of folds, found {', '.join(wrong)}")
    args.folds = [int(fold) for fold in folds]
    numbers = {"--seeds": args.seeds, "--num-gpus": args.num_gpus, "-np": args.num_processes}
    small = [
        f"{flag} must be at least 1, found {value}."
        for flag, value in numbers.items()
        if value is not None and value < 1
    ]
    if small:
        raise SettingsError(" ".join(small))
    doing = {"--list": args.show, "--run": args.run is not None, "--dry-run": args.dry_run, "--report": args.report}
    doing["--dask"] = args.dask is not None
    given = [flag for flag, there in doing.items() if there]
    if len(given) > 1:
        raise SettingsError(f"{' and '.join(given)} are different things to do. Choose one")


def run(args: argparse.Namespace) -> int:
    """Do what the flags say; returns the exit code: 1 where cells have failed."""
    from nnunet_ssl.cli.compare_flags import description_of
    from nnunet_ssl.comparison import overview
    from nnunet_ssl.comparison.cells import cells_of
    from nnunet_ssl.comparison.checking import require_possible
    from nnunet_ssl.corpus.datasets import resolve_datasets

    folder = Path(args.output).expanduser().resolve()
    if args.report:
        _require_comparison(folder)
        print(overview.write_everything(folder))
        return 0
    if not args.datasets and args.protocol is None and not (folder / "comparison.json").exists():
        raise SettingsError(
            f"Which data sets? There is no comparison in {folder} yet. Example: {EXAMPLES[0]} -o {shlex.quote(args.output)}"
        )
    write = not (args.show or args.dry_run)
    description = description_of(args, folder, resolve_datasets, write, partial(require_possible, device=args.device))
    cells = cells_of(description)
    if args.show:
        print(overview.table(cells, folder))
        return 0
    if args.dry_run:
        from nnunet_ssl.comparison.expected import expectation

        print(expectation(description, cells, folder, args.device))
        return 0
    missing = [str(k) for k in args.run or () if k not in range(len(cells))]
    if missing:
        raise SettingsError(f"--run {' '.join(missing)}: the cells are 0 to {len(cells) - 1}. See --list.")
    chosen = cells if args.run is None else [cells[k] for k in dict.fromkeys(args.run)]
    return _work(args, folder, description, chosen)


def _work(args: argparse.Namespace, folder: Path, description: Description, chosen: list) -> int:  # type: ignore[type-arg]
    from torch import device

    from nnunet_ssl.comparison import overview
    from nnunet_ssl.comparison.work import How, work
    from nnunet_ssl.files.folders import require_writable
    from nnunet_ssl.trainers.device.devices import require_device

    require_writable(folder)
    if args.dask is not None:
        from nnunet_ssl.comparison.dask_cluster import work_on_workers

        arguments = ["-o", str(folder), "-device", args.device, "-np", str(args.num_processes)]
        return work_on_workers(args.dask, [*arguments, "--num-gpus", str(args.num_gpus)])
    require_device(device(args.device))
    outcome = work(folder, description, chosen, How(args.device, args.num_gpus, args.num_processes))
    print(overview.ending(outcome, folder, args.run))
    print(overview.write_everything(folder))
    return 1 if outcome.failed else 0


def _require_comparison(folder: Path) -> None:
    if not (folder / "comparison.json").exists():
        raise SettingsError(f"There is no comparison in {folder}. Name its folder with -o.")


def main(argv: list[str] | None = None) -> None:
    """Entry point of nnUNetv2_pretrain_compare."""
    from nnunet_ssl.cli.errors import one_line_errors

    args = build_parser().parse_args(argv)
    with one_line_errors("nnUNetv2_pretrain_compare"):
        sys.exit(run(args))


if __name__ == "__main__":
    main()
