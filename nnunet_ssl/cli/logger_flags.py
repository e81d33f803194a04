"""Where a run can be followed from elsewhere: flags of the commands that train, handed on in the environment."""

from __future__ import annotations

import argparse
import os

from nnunet_ssl.cli.parser import CommandParser, one_of
from nnunet_ssl.loggers import CHOSEN, PICTURES, logger_names, require_loggers


def add_loggers(parser: CommandParser) -> None:
    """--logger and --log-pictures."""
    following = parser.add_argument_group("following a run elsewhere")
    following.add_argument(
        "--logger",
        dest="loggers",
        action="append",
        default=[],
        type=one_of(logger_names),
        metavar="NAME",
        help=f"{', '.join(logger_names())}; several times for several (docs/loggers.md). Or {CHOSEN}=NAME,NAME",
    )
    following.add_argument(
        "--log-pictures",
        action="store_true",
        help="send pictures of images to services outside of the result folder too; without it they get numbers and plans",
    )


def use_loggers(args: argparse.Namespace) -> None:
    """Into the environment, where trainers look, in spawned processes too; raises SettingsError where a package is missing."""
    if args.loggers:
        os.environ[CHOSEN] = ",".join(
            dict.fromkeys([*os.environ.get(CHOSEN, "").replace(",", " ").split(), *args.loggers])
        )
    if args.log_pictures:
        os.environ[PICTURES] = "1"
    require_loggers()
