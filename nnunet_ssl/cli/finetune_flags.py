"""The flags that nnUNetv2_finetune and nnUNetv2_plan_finetune share."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from nnunet_ssl.cli.parser import CommandParser, number, one_of, whole

if TYPE_CHECKING:
    from nnunet_ssl.planners.finetuning.finetune_plans import Wishes

ADAPT = ("like_pretrained", "like_dataset", "fixed", "no_resample")


def add_weights(group: argparse._ArgumentGroup) -> None:
    """-pretrained_weights, where the command is about them."""
    group.add_argument(
        "-pretrained_weights",
        required=True,
        metavar="X",
        help="checkpoint: a file, a model on the Hugging Face Hub (ORG/NAME, hf://..., its URL), or a name that "
        "nnUNetv2_pretrain_models lists",
    )


def add_geometry(parser: CommandParser) -> None:
    """How new plans present the images."""
    how = parser.add_argument_group("how the images are presented")
    how.add_argument(
        "--adapt", type=one_of(ADAPT), metavar="HOW", help=f"{', '.join(ADAPT)} (default: what suits the checkpoint)"
    )
    how.add_argument("--spacing", type=number, nargs="+", metavar="MM", help="for --adapt fixed: 3 numbers (2D: 2)")
    how.add_argument("--patch-size", type=whole, nargs="+", metavar="N", help="voxels per axis, one or as many as axes")
    how.add_argument(
        "--stem",
        metavar="ID",
        help="of weights with a stem for every data set (MultiTalent): its id or number, or mean (of all)",
    )


def add_length(group: argparse._ArgumentGroup) -> None:
    """How long and in which batches is trained."""
    group.add_argument("--epochs", type=whole, metavar="N", help="default: 1000; OpenMind's short schedule has 150")
    group.add_argument("--batch-size", type=whole, metavar="N", help="default: that of the checkpoint's plans, or 2")
    group.add_argument("--iterations-per-epoch", type=whole, metavar="N", help="default: 250")
    group.add_argument("--save-every", type=whole, metavar="N", help="epochs between two checkpoints (default: 50)")
    group.add_argument(
        "--early-stop",
        type=whole,
        metavar="N",
        help="end, as finished, when the pseudo Dice has not risen for N epochs",
    )


def wishes_of(args: argparse.Namespace) -> Wishes:
    """The flags as the planning wants them."""
    from nnunet_ssl.planners.finetuning.finetune_plans import Wishes

    return Wishes(**{field.name: getattr(args, field.name) for field in fields(Wishes)})
