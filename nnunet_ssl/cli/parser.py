"""The parser of our commands: a short help, words for people where argparse has words for programmers, a greeting."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.nearest import did_you_mean, nearest

# What other programs call our flags, without dashes.
MEANT = {
    "learningrate": "--lr", "initiallr": "--lr", "numepochs": "--epochs", "maxepochs": "--epochs", "bs": "--batch-size",
    "gpus": "--num-gpus", "ngpus": "--num-gpus", "resume": "--continue", "fold": "-f", "folds": "-f", "plans": "-p",
    "trainer": "-tr", "dataset": "-d", "datasetid": "-d", "weights": "-pretrained_weights", "checkpoint": "-pretrained_weights",
    "model": "--backbone", "network": "--backbone", "task": "--method", "configuration": "-c", "processes": "-np",
    "numprocesses": "-np", "output": "-o", "name": "-n", "input": "-i", "patience": "--early-stop",
}  # fmt: skip
WIDTH = 110  # characters of a line of help


class CommandParser(argparse.ArgumentParser):
    """argparse's parser with two helps: `--help` shows the usual flags and names the others, `--help all` explains all.

    usual: title of the group that the short help shows whole. examples: command lines, the first three of which greet who types
    the command alone (greets). notes: what `--help all` says at its end. understand: is given what was parsed, may complete it,
    and raises SettingsError for what contradicts itself.
    """

    def __init__(
        self,
        prog: str,
        usage: str,
        description: str,
        examples: Sequence[str],
        notes: str = "",
        greets: bool = True,
        understand: Callable[[argparse.Namespace], None] | None = None,
    ) -> None:
        text = "\n".join(["examples:", *(f"  {example}" for example in examples)])
        super().__init__(
            prog=prog,
            usage=f"{prog} {usage}",
            description=textwrap.fill(description, WIDTH),
            epilog=f"{text}\n\n{notes}".strip(),
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=WIDTH),
            add_help=False,
        )
        self.examples, self.greets, self.understand = examples, greets, understand
        self.usual = self.add_argument_group("usual")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's; unknown flags are answered with the nearest known one, and no arguments at all with examples."""
        if "--help" not in self._option_string_actions:  # last in its group
            self.usual.add_argument(
                "-h",
                "--help",
                nargs="?",
                const="usual",
                action=HelpAction,
                metavar="all",
                help="--help all: every flag",
            )
        given = sys.argv[1:] if args is None else list(args)
        if not given and self.greets:
            print(self.greeting())
            raise SystemExit(2)
        parsed, rest = self.parse_known_args(given, namespace)
        if rest:
            self.error(self._unknown(rest))
        if self.understand is not None:
            try:
                self.understand(parsed)
            except SettingsError as error:
                self.error(str(error))
        return parsed

    def error(self, message: str) -> NoReturn:
        """One line, and how to see what there is."""
        end = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"{self.prog}: {message}{end} Flags: {self.prog} --help\n")

    def greeting(self) -> str:
        """What the command is for, and three examples."""
        lines = [str(self.description), "", *(f"  {example}" for example in self.examples[:3])]
        return "\n".join([*lines, "", f"{self.prog} --help shows the usual flags, --help all every one."])

    def format_help(self) -> str:
        """The short help: the usual flags, and the names of the others by group."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        formatter.start_section(self.usual.title)
        formatter.add_arguments(self.usual._group_actions)
        formatter.end_section()
        others = [
            f"{group.title}: {', '.join(action.option_strings[0] for action in group._group_actions)}"
            for group in self._action_groups
            if group is not self.usual and group.title and any(a.option_strings for a in group._group_actions)
        ]
        text = formatter.format_help()
        more = "\n".join([f"More, explained by {self.prog} --help all:", *(f"  {line}" for line in others)])
        examples = "\n".join(["examples:", *(f"  {example}" for example in self.examples)])
        return "\n".join([text, *([more, ""] if others else []), examples, ""])

    def format_full_help(self) -> str:
        """Every flag with its explanation, and the notes."""
        return super().format_help()

    def _unknown(self, rest: Sequence[str]) -> str:
        known = [flag for action in self._actions for flag in action.option_strings]
        flag = next((text.partition("=")[0] for text in rest if text.startswith("-")), None)
        meant = MEANT.get((flag or "").replace("-", "").replace("_", "").lower())
        if meant in known:
            return f"there is no {flag}. Did you mean {meant}?"
        if flag is None:
            return f"{' '.join(rest)} is more than the command takes, or stands in the wrong place"
        return f"there is no {flag}.{did_you_mean(flag, known)}"


class HelpAction(argparse.Action):
    """Print the help, or with "all" the whole of it, and leave."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        print(parser.format_full_help() if values == "all" else parser.format_help(), end="")
        parser.exit()


def whole(text: str) -> int:
    """A whole number that was typed."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wants a whole number, found {text!r}") from None


def number(text: str) -> float:
    """A number that was typed."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wants a number, found {text!r}") from None


def one_of(names: Iterable[str] | Callable[[], Iterable[str]], guess: bool = True) -> Callable[[str], str]:
    """The type of a flag that takes one of these names; they are looked up when it is used.

    guess: whether to ask for the one that is spelled alike, which is wrong for cpu and gpu.
    """

    def choose(text: str) -> str:
        known = list(names() if callable(names) else names)
        if text in known:
            return text
        near = nearest(text, known) if guess else None
        asked = f" Did you mean {near}?" if near else ""
        raise argparse.ArgumentTypeError(f"there is no {text!r}.{asked} Known: {', '.join(known)}")

    return choose
