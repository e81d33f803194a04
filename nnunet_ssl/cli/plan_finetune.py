"""nnUNetv2_plan_finetune: from a data set and a checkpoint to plans, preprocessed images and the commands to train."""

from __future__ import annotations

import argparse

from nnunet_ssl.cli.finetune_flags import add_geometry, add_length, add_weights, wishes_of
from nnunet_ssl.cli.nnunet_words import add_dataset, take_dataset
from nnunet_ssl.cli.parser import CommandParser, whole
from nnunet_ssl.errors import SettingsError

EXAMPLES = (
    "nnUNetv2_plan_finetune -d 4 -pretrained_weights AnonRes/ResEncL-OpenMind-MAE",
    "nnUNetv2_plan_finetune -d 4 -pretrained_weights weights.pth --adapt like_dataset",
    "nnUNetv2_plan_finetune -d 4 -pretrained_weights weights.pth --adapt fixed --spacing 1.5 1 1",
    "nnUNetv2_plan_finetune -d 4 -pretrained_weights weights.pth --epochs 150 --from-scratch",
)
NOTES = """\
how --adapt chooses spacing and patch:
  like_pretrained  the pre-training's spacing and patch, the patch smaller where the images are; where the pre-training did
                   not resample, nothing is resampled. The default where the file states one spacing (OpenMind's advice).
  like_dataset     nnU-Net's own spacing for this data set, and a patch in the data set's proportions with as many voxels as
                   the pre-training's. The default for all other files.
  fixed            --spacing, in mm, in the order of axes in which nnU-Net reads the images (slices first); patch as above.
  no_resample      every image as it is.
The network is always the checkpoint's. Patches are rounded to what it can take (Primus: multiples of 8). Normalisation is
the data set's own (a channel called CT stays in Hounsfield units); like_pretrained follows the pre-training's scheme on
channels that are not CT. Wherever images will look different from those of the pre-training, the command says so.

--from-scratch: the matched twin needs no plans of its own. Same network, images and schedule are these very plans trained
with -tr SSLScratchTrainer; the result folders differ by the trainer's name. The flag prints its commands as well.

Existing plans are never overwritten. Run the same command again and it preprocesses what is still missing."""


def build_parser() -> CommandParser:
    """All flags with their help."""
    parser = CommandParser(
        "nnUNetv2_plan_finetune",
        "DATASET -pretrained_weights X [flags]",
        "Plan the fine-tuning of a pre-trained network on a labelled data set: writes new plans with the "
        "network of the checkpoint, checks that its weights fit, preprocesses, and prints the commands to train.",
        EXAMPLES,
        NOTES,
        understand=take_dataset,
    )
    add_dataset(parser)
    add_weights(parser.usual)
    add_length(parser.usual)
    parser.usual.add_argument(
        "-plans_name", "-o", dest="plans_name", metavar="NAME", help="default: made from the checkpoint"
    )
    add_geometry(parser)
    what = parser.add_argument_group("what to do")
    what.add_argument("--from-scratch", action="store_true", help="print the commands of the matched twin as well")
    what.add_argument("--no-preprocess", action="store_true", help="only plan and check")
    what.add_argument("-np", dest="num_processes", type=whole, default=8, metavar="N", help="processes (default: 8)")
    return parser


def run(args: argparse.Namespace) -> None:
    """Plan, check, preprocess and print the next commands."""
    from nnunet_ssl.planners.finetuning.plan_finetune import next_commands, plan_finetuning

    if args.num_processes < 1:
        raise SettingsError(f"-np must be at least 1, found {args.num_processes}.")
    wishes = wishes_of(args)
    planned = plan_finetuning(
        args.dataset,
        args.pretrained_weights,
        wishes,
        plans_name=args.plans_name,
        preprocess=not args.no_preprocess,
        num_processes=args.num_processes,
    )
    commands = next_commands(
        planned, args.pretrained_weights, from_scratch=args.from_scratch, preprocess=not args.no_preprocess
    )
    print(f"\nNext:\n\n{commands}")


def main(argv: list[str] | None = None) -> None:
    """Entry point of nnUNetv2_plan_finetune."""
    from nnunet_ssl.cli.errors import one_line_errors

    args = build_parser().parse_args(argv)
    with one_line_errors("nnUNetv2_plan_finetune", "Nothing is half written; the same command begins anew."):
        run(args)


if __name__ == "__main__":
    main()
