"""nnUNetv2_pretrain_info: what is this checkpoint, and what can be done with it?"""

from __future__ import annotations

import argparse
import json

from nnunet_ssl.cli.parser import CommandParser

EXAMPLES = (
    "nnUNetv2_pretrain_info .../fold_all/checkpoint_final.pth",
    "nnUNetv2_pretrain_info AnonRes/ResEncL-OpenMind-MAE",
    "nnUNetv2_pretrain_info weights.safetensors --json | jq .patch_size",
)
NOTES = """\
The file is opened without running anything in it. With --json every key is always there, null or empty where the file
does not state it. The exit code is 0 for every file that holds a checkpoint, and 1 where it cannot be opened."""


def build_parser() -> CommandParser:
    """All flags with their help."""
    parser = CommandParser(
        "nnUNetv2_pretrain_info",
        "X [--json]",
        "Say what a checkpoint is: the program it comes from, method, network, data, conventions, licence, and "
        "what to type to use it.",
        EXAMPLES,
        NOTES,
    )
    parser.usual.add_argument(
        "checkpoint",
        metavar="X",
        help="a file, a model on the Hugging Face Hub (ORG/NAME, hf://..., its URL), or a name that "
        "nnUNetv2_pretrain_models lists",
    )
    parser.usual.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(args: argparse.Namespace) -> None:
    """Describe the checkpoint."""
    from nnunet_ssl.checkpoints.description.describe import describe
    from nnunet_ssl.checkpoints.hub.resolve import resolve_source
    from nnunet_ssl.checkpoints.read import read_checkpoint

    local = resolve_source(args.checkpoint)
    description = describe(read_checkpoint(local.path), local.path, origin=local.origin, typed=args.checkpoint)
    print(json.dumps(description.to_json(), indent=2) if args.json else description.table())


def main(argv: list[str] | None = None) -> None:
    """Entry point of nnUNetv2_pretrain_info."""
    from nnunet_ssl.cli.errors import one_line_errors
    from nnunet_ssl.cli.pipes import until_nobody_reads

    args = build_parser().parse_args(argv)
    with one_line_errors("nnUNetv2_pretrain_info", "The same command begins anew."), until_nobody_reads():
        run(args)


if __name__ == "__main__":
    main()
