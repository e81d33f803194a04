"""nnUNetv2_finetune: from a labelled data set and a checkpoint to networks that predict, in one command."""

from __future__ import annotations

import argparse

from nnunet_ssl.cli.finetune_flags import add_geometry, add_length, add_weights, wishes_of
from nnunet_ssl.cli.logger_flags import add_loggers, use_loggers
from nnunet_ssl.cli.nnunet_words import DEFAULT, add_dataset, add_device, take_words
from nnunet_ssl.cli.parser import CommandParser, whole
from nnunet_ssl.errors import SettingsError

TRAINER, SCRATCH = "SSLFinetuneTrainer", "SSLScratchTrainer"
EXAMPLES = (
    "nnUNetv2_finetune 4 -pretrained_weights AnonRes/ResEncL-OpenMind-MAE",
    "nnUNetv2_finetune 4 -pretrained_weights .../fold_all/checkpoint_final.pth -f 0 1 2 3 4 --epochs 150",
    "nnUNetv2_finetune 4 -p nnUNetSSLResEncLPlans -pretrained_weights .../fold_all/checkpoint_final.pth",
)
NOTES = """The same command again continues where it stopped: plans, images and folds that are finished stay, a fold that was
interrupted goes on from its last checkpoint. So it may be requeued, and run for several folds at once on several machines
(-f 0, -f 1, ...). Ctrl-C, SIGTERM and SIGUSR1 save at once.

Without -p new plans are written, with the network of the checkpoint, as nnUNetv2_plan_finetune does (its --help all explains
--adapt); they are named after the checkpoint and the flags, and may be edited. With -p the plans stay as they are; --epochs,
--iterations-per-epoch and --batch-size go into a copy of them.

Schedules are trainers: docs/finetuning.md. -tr SSLScratchTrainer trains the twin from random weights, on the same plans."""


def build_parser() -> CommandParser:
    """All flags with their help."""
    parser = CommandParser(
        "nnUNetv2_finetune",
        "DATASET -pretrained_weights X [-f 0 1 2 3 4] [flags]",
        "Fine-tune a pre-trained network on a labelled data set. Does what is missing of planning and preprocessing, trains the "
        "folds with nnU-Net's own training, and says how to predict.",
        EXAMPLES,
        NOTES,
        understand=understand,
    )
    add_dataset(parser)
    usual = parser.usual
    add_weights(usual)
    usual.add_argument(
        "-f", dest="folds", nargs="+", metavar="FOLD", help="folds to train, or all (default: the first)"
    )
    add_length(usual)
    usual.add_argument("-p", dest="plans", metavar="PLANS", help="use these plans of DATASET instead of new ones")
    add_device(usual)
    add_geometry(parser)
    more = parser.add_argument_group("training")
    more.add_argument("-tr", dest="trainer", default=TRAINER, metavar="TRAINER", help=f"default: {TRAINER}")
    more.add_argument("-c", dest="configuration", metavar="CONFIGURATION", help="with -p (default: 3d_fullres)")
    more.add_argument("-plans_name", metavar="NAME", help="of new plans (default: made from checkpoint and flags)")
    more.add_argument("--num-gpus", "-num_gpus", type=whole, default=1, metavar="N", help="default: 1")
    more.add_argument(
        "-np", dest="num_processes", type=whole, default=8, metavar="N", help="to preprocess (default: 8)"
    )
    more.add_argument("--continue", "--c", dest="go_on", action="store_true", help="not needed: it always does")
    add_loggers(parser)
    return parser


def understand(args: argparse.Namespace) -> None:
    """Sort the words that belong to no flag; raises SettingsError for what cannot be right or contradicts itself."""
    words = take_words(args)
    if len(words.datasets) != 1:
        shown = f", found {', '.join(words.datasets)}" if words.datasets else ""
        raise SettingsError(
            f"one data set is wanted{shown}. Example: nnUNetv2_finetune 4 -f 0 1 -pretrained_weights checkpoint_final.pth"
        )
    (args.dataset,) = words.datasets
    args.configuration = args.configuration or words.configuration
    args.folds = list(dict.fromkeys([*(args.folds or []), *words.folds]))
    wrong = [fold for fold in args.folds if fold != "all" and not fold.isdecimal()]
    if wrong:
        raise SettingsError(f'-f wants "all" or numbers of folds, found {", ".join(wrong)}')
    geometry = [args.adapt, args.spacing, args.patch_size, args.stem, args.plans_name]
    if args.plans is not None and any(value is not None for value in geometry):
        raise SettingsError(
            "-p names plans that stay as they are; --adapt, --spacing, --patch-size, --stem and -plans_name are for new ones"
        )
    if args.num_gpus < 1 or args.num_processes < 1:
        raise SettingsError(f"--num-gpus and -np want at least 1, found {args.num_gpus} and {args.num_processes}")


def run(args: argparse.Namespace) -> None:
    """Plan, preprocess, train fold after fold, and say how to predict."""
    from torch import device

    from nnunet_ssl.corpus.folders import require_folder
    from nnunet_ssl.files.folders import require_writable
    from nnunet_ssl.planners.finetuning.existing_plans import use_plans
    from nnunet_ssl.planners.finetuning.plan_finetune import plan_finetuning
    from nnunet_ssl.trainers.device.devices import require_device
    from nnunet_ssl.trainers.finetune_folds import Finetuning, next_commands, require_trainer, train_folds

    use_loggers(args)
    require_trainer(args.trainer)
    require_device(device(args.device))
    require_writable(require_folder("nnUNet_results"))
    wishes = wishes_of(args)
    if args.plans is not None:
        configuration = args.configuration or DEFAULT
        planned = use_plans(args.dataset, args.plans, configuration, wishes, args.num_processes)
    else:
        planned = plan_finetuning(
            args.dataset,
            args.pretrained_weights,
            wishes,
            plans_name=args.plans_name,
            num_processes=args.num_processes,
            keep=True,
        )
    if args.configuration not in (None, planned.configuration):
        raise SettingsError(
            f"The checkpoint's network is one for {planned.configuration}, found -c {args.configuration}. Leave out -c."
        )
    job = Finetuning(
        planned.plans["dataset_name"],
        planned.configuration,
        args.trainer,
        planned.plans["plans_name"],
        None if args.trainer == SCRATCH else args.pretrained_weights,
        args.device,
    )
    folds = args.folds or planned.folds[:1]
    train_folds(job, folds, args.num_gpus)
    print(next_commands(job, folds))
    if not args.folds and len(planned.folds) > 1:
        print(f"For an ensemble of all folds: the same command with -f {' '.join(planned.folds)}")


def main(argv: list[str] | None = None) -> None:
    """Entry point of nnUNetv2_finetune."""
    from nnunet_ssl.cli.errors import one_line_errors

    args = build_parser().parse_args(argv)
    with one_line_errors("nnUNetv2_finetune"):
        run(args)


if __name__ == "__main__":
    main()
