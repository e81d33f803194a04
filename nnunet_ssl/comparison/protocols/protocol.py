"""A paper's evaluation: its data sets and what they must hold, its schedules and trainers, and its published numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from nnunet_ssl.corpus.dataset_names import dataset_title
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.nearest import did_you_mean

NAMES = ("openmind", "spark3d")
DEVELOPMENT, TEST = "development", "test"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class ProtocolDataset:
    """A data set of a paper. What is not known of it is None, or "unknown" where it is a text.

    name: the paper's. titles: what may stand behind the number in a data set's name (Hippocampus in
    Dataset004_Hippocampus), compared without regard to case and punctuation. part: "development", "test" or "unknown".
    channels: how many images a case has; labels: how many structures besides the background, or regions; cases: with
    labels, training and test part together.
    """

    name: str
    titles: tuple[str, ...]
    part: str
    modality: str = UNKNOWN
    task: str = UNKNOWN
    cases: int | None = None
    channels: int | None = None
    labels: int | None = None
    licence: str = UNKNOWN
    where: str = UNKNOWN
    split: str = UNKNOWN
    note: str = ""

    def must_hold(self) -> str:
        """What its nnU-Net data set must hold, in words."""
        counts = ((self.channels, "channel"), (self.labels, "label"), (self.cases, "labelled case"))
        known = [f"{number} {noun}{'s' * (number != 1)}" for number, noun in counts if number is not None]
        return ", ".join(known) or UNKNOWN

    def mistakes(self, dataset_json: Mapping[str, Any], cases: int | None = None) -> list[str]:
        """In what a data set differs from what it must hold; `cases`: counted, else as its dataset.json says.

        What the protocol does not know is not compared.
        """
        channels = dataset_json.get("channel_names") or dataset_json.get("modality") or {}
        labels = [name for name in dataset_json.get("labels") or {} if name not in ("background", "ignore")]
        number = dataset_json.get("numTraining") if cases is None else cases
        compared: tuple[tuple[str, int | None, Any, list[Any]], ...] = (
            ("channels", self.channels, len(channels), list(channels.values())),
            ("labels or regions besides the background", self.labels, len(labels), labels),
            ("labelled cases", self.cases, number, []),
        )
        return [
            f"{self.name} has {expected} {what}, this data set {found}{': ' if names else ''}{', '.join(map(str, names))}"
            for what, expected, found, names in compared
            if expected is not None and found != expected
        ]


@dataclass(frozen=True)
class Protocol:
    """A paper's evaluation.

    epochs: its schedules, the usual one first. trainers: backbone -> start ("fine-tuned", "from scratch") -> trainer. published:
    rows of its tables: backbone, start, epochs, mean [%], datasets (how many the mean is over), average_rank, by_dataset
    (name -> [%]), trust (how far the numbers were checked).
    """

    name: str
    title: str
    paper: str
    metric: str
    split: str
    epochs: tuple[int, ...]
    trainers: Mapping[str, Mapping[str, str]]
    datasets: tuple[ProtocolDataset, ...]
    published: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = field(default=())

    def datasets_of(self, names: Iterable[str]) -> dict[ProtocolDataset, str]:
        """Which of a user's data sets are which of the paper's, by title; the paper's that nobody has are not in it."""
        found: dict[ProtocolDataset, str] = {}
        for name in names:
            title = _plain(dataset_title(name))
            for entry in self.datasets:
                if title and title in {_plain(text) for text in (entry.name, *entry.titles)}:
                    found.setdefault(entry, name)
        return found

    def lacking(self, names: Iterable[str]) -> list[ProtocolDataset]:
        """The paper's data sets that are not among a user's, development ones first."""
        have = self.datasets_of(names)
        return [entry for entry in self.datasets if entry not in have]


def load_protocol(name: str) -> Protocol:
    """The protocol of a paper; raises SettingsError that lists those there are."""
    if name not in NAMES:
        raise SettingsError(
            f"There is no protocol {name!r}.{did_you_mean(name, NAMES)} Protocols: {', '.join(NAMES)}.", found=name
        )
    content = json.loads(resources.files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    datasets = tuple(
        ProtocolDataset(**{**entry, "titles": tuple(entry["titles"])}) for entry in content.pop("datasets")
    )
    lists: dict[str, Any] = {key: tuple(content.pop(key)) for key in ("epochs", "published", "notes")}
    return Protocol(datasets=datasets, **lists, **content)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
