"""What nnU-Net's users type out of habit: `4 3d_fullres all`, `-d 4`, `-tr SSLMAETrainer`, `-num_gpus`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from nnunet_ssl.cli.parser import one_of
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.methods import trainer_names
from nnunet_ssl.nearest import did_you_mean

CONFIGURATION = re.compile(r"[23]d(_\w+)?")  # what nnU-Net's planners call theirs
DEFAULT = "3d_fullres"


class Words(NamedTuple):
    """The words of a command that belong to no flag, sorted by what they mean."""

    datasets: list[str]
    configuration: str | None
    folds: list[str]


def sort_words(words: Sequence[str]) -> Words:
    """Data sets come first, then perhaps a configuration and folds, as in `nnUNetv2_train 4 3d_fullres 0`."""
    datasets: list[str] = []
    folds: list[str] = []
    configuration = None
    for word in words:
        if configuration is None and datasets and CONFIGURATION.fullmatch(word):
            configuration = word
        elif configuration is not None or (word == "all" and datasets):
            folds.append(word)
        else:
            datasets.append(word)
    return Words(datasets, configuration, folds)


def add_dataset(parser: Any, several: bool = False, required: bool = True, what: str | None = None) -> None:
    """DATASET by position or with -d, as nnU-Net's commands have it either way; `take_dataset` reads both. what: its help."""
    default = "" if required else " (default: artificial images)"
    usual = "numbers or names of data sets; several form one corpus" if several else "number or name of the data set"
    shown = what or f"{usual}{default}"
    parser.usual.add_argument("words", nargs="*", metavar="DATASET", help=shown)
    parser.usual.add_argument(
        "-d",
        dest="given",
        nargs="+",
        default=[],
        metavar="DATASET",
        help="the same as a flag, as in nnU-Net's commands",
    )


def add_device(group: Any) -> None:
    """-device, as nnU-Net's commands have it."""
    group.add_argument(
        "-device",
        default="cuda",
        type=one_of(("cuda", "cpu", "mps"), guess=False),
        metavar="D",
        help="cuda (default), cpu or mps",
    )


def take_words(args: argparse.Namespace) -> Words:
    """The words behind the command and behind -d; raises SettingsError where a flag says something else."""
    words = sort_words([*args.words, *args.given])
    given = getattr(args, "configuration", None)
    if words.configuration is not None and given not in (None, words.configuration):
        raise SettingsError(f"{words.configuration} and -c {given} contradict each other. Leave one of them out")
    del args.words, args.given
    return words


def take_dataset(args: argparse.Namespace, required: bool = True) -> None:
    """For commands about one data set: sets `args.dataset`; raises SettingsError for more, or none."""
    words = take_words(args)
    if words.configuration or words.folds or len(words.datasets) > 1:
        everything = [*words.datasets, *filter(None, [words.configuration]), *words.folds]
        raise SettingsError(f"one data set is looked at, found {', '.join(everything)}")
    if required and not words.datasets:
        raise SettingsError("which data set? Type its number or name behind the command")
    args.dataset = words.datasets[0] if words.datasets else None


def method_of_trainer(trainer: str, methods: Sequence[str]) -> str:
    """mae for SSLMAETrainer; raises SettingsError for trainers of other kinds."""
    by_trainer = {name.lower(): method for name, method in trainer_names().items() if method in methods}
    found = by_trainer.get(trainer.lower())
    if found is not None:
        return found
    if trainer.startswith("nnUNetTrainer") or "finetune" in trainer.lower() or "scratch" in trainer.lower():
        raise SettingsError(
            f"{trainer} trains with labels. To pre-train: --method mae, or another one; to fine-tune: nnUNetv2_finetune"
        )
    near = did_you_mean(trainer, list(trainer_names()))
    raise SettingsError(f"there is no pre-training trainer {trainer}.{near} Methods: {', '.join(methods)}")
