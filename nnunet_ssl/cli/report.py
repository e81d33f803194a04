"""nnUNetv2_pretrain_report: the page of a run, made again."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_ssl.cli.parser import CommandParser

EXAMPLES = (
    "nnUNetv2_pretrain_report $nnUNet_results/Dataset004_Hippocampus/SSLMAETrainer__.../fold_all",
    "nnUNetv2_pretrain_report .",
    "nnUNetv2_pretrain_report results/Dataset745_MyBrains/SSLMAETrainer__.../fold_0",
)
NOTES = """\
A pre-training writes report.html after every epoch by itself. The page is one file, and needs no network. This makes it from
the log files and pictures of the folder, e.g. of a run that was killed, or one from before there were such pages."""


def build_parser() -> CommandParser:
    """All flags with their help."""
    parser = CommandParser(
        "nnUNetv2_pretrain_report",
        "FOLDER",
        "Write report.html of a pre-training: state, curves, previews, settings, warnings and the command to continue.",
        EXAMPLES,
        NOTES,
    )
    parser.usual.add_argument(
        "folder", metavar="FOLDER", type=Path, help="the folder of the run, which ends in fold_..."
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Write the page."""
    from nnunet_ssl.report.run_page import write_report

    print(write_report(args.folder))


def main(argv: list[str] | None = None) -> None:
    """Entry point of nnUNetv2_pretrain_report."""
    from nnunet_ssl.cli.errors import one_line_errors

    args = build_parser().parse_args(argv)
    with one_line_errors("nnUNetv2_pretrain_report", "The same command begins anew."):
        run(args)


if __name__ == "__main__":
    main()
