"""comparison.json: what is compared. Written by the flags or by hand; read and checked like every other setting."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from nnunet_ssl.errors import BadFile, SettingsError
from nnunet_ssl.files.atomic import write_json
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.nearest import did_you_mean
from nnunet_ssl.settings.blocks import read_config
from nnunet_ssl.settings.bounds import Bounds, Count, Name, Positive, Whole

FILE = "comparison.json"
ALL = "all"  # in place of a number of labelled cases
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")  # of an arm: it becomes a folder's
FINETUNE, SCRATCH, STOCK = "SSLFinetuneTrainer", "SSLScratchTrainer", "nnUNetTrainer"
Metric = Literal["Dice", "NSD", "HD95"]
Keep = Literal["models", "predictions", "scores"]
AtLeastOne = Bounds(min_length=1)


@dataclass(frozen=True)
class DatasetEntry:
    """A data set of the comparison, by its whole name."""

    dataset: Name
    configuration: Name = "3d_fullres"


@dataclass(frozen=True)
class Arm:
    """One way to train.

    weights: whatever -pretrained_weights takes; None: random weights. plans: the name of plans of the data sets; None: those that
    nnUNetv2_plan_finetune makes for the weights. like: without weights and plans, the arm whose plans this one takes; None: the
    first with weights. adapt: how new plans present the images, see nnUNetv2_plan_finetune --adapt.
    """

    name: Name
    weights: Name | None = None
    trainer: Name = FINETUNE
    plans: Name | None = None
    like: Name | None = None
    adapt: Literal["like_pretrained", "like_dataset", "no_resample"] | None = None


@dataclass(frozen=True)
class Description:
    """Everything the results depend on. folds and seeds are their numbers, tolerance_mm is NSD's; None: as the trainer has it."""

    datasets: tuple[DatasetEntry, ...]
    arms: tuple[Arm, ...]
    folds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    labelled: tuple[int | str, ...] = (ALL,)
    epochs: int | None = None
    iterations_per_epoch: int | None = None
    batch_size: int | None = None
    metrics: tuple[str, ...] = ("Dice", "NSD")
    tolerance_mm: float = 1.0
    protocol: str | None = None
    keep: str = "predictions"

    @property
    def reference(self) -> Arm:
        """The arm that the others are compared with: the first without weights, else the first."""
        return next((arm for arm in self.arms if arm.weights is None), self.arms[0])

    def to_json(self) -> dict[str, Any]:
        """For comparison.json."""
        return json.loads(json.dumps({"format": 1, **asdict(self)}))


@dataclass(frozen=True)
class Content:
    """comparison.json as it lies on the disk, before its data sets and arms are looked at."""

    datasets: Annotated[tuple[Mapping[str, Any], ...], AtLeastOne]
    arms: Annotated[tuple[Mapping[str, Any], ...], AtLeastOne]
    format: Literal[1] = 1
    folds: Annotated[tuple[Whole, ...], AtLeastOne] = (0,)
    seeds: Annotated[tuple[Whole, ...], AtLeastOne] = (0,)
    labelled: Annotated[tuple[Count | Literal["all"], ...], AtLeastOne] = ("all",)
    epochs: Count | None = None
    iterations_per_epoch: Count | None = None
    batch_size: Count | None = None
    metrics: Annotated[tuple[Metric, ...], AtLeastOne] = ("Dice", "NSD")
    tolerance_mm: Positive = 1.0
    protocol: Name | None = None
    keep: Keep = "predictions"


def parse_description(content: Any, where: str) -> Description:
    """The description in a JSON object; raises SettingsError, `where` in front, for all of a kind that is wrong at once."""
    read = read_config(Content, content, where)
    datasets = tuple(read_config(DatasetEntry, d, f"{where}: datasets[{n}]") for n, d in enumerate(read.datasets))
    arms = tuple(read_config(Arm, a, f"{where}: arms[{n}]") for n, a in enumerate(read.arms))
    values = {f.name: getattr(read, f.name) for f in fields(Content) if f.name not in ("format", "datasets", "arms")}
    description = Description(datasets, arms, **values)
    wrong = [*_names(description), *_plans(arms)]
    if wrong:
        raise SettingsError(f"{where}: {' '.join(wrong)}")
    return description


def _names(description: Description) -> list[str]:
    names = [arm.name for arm in description.arms]
    bad = [name for name in names if not NAME.fullmatch(name)]
    wrong = [f"{', '.join(map(repr, bad))} cannot name an arm: use letters, digits, - and _." for _ in bad[:1]]
    lists: dict[str, Sequence[Any]] = {
        "arms": [name.lower() for name in names],  # folders that differ in case alone are one on some systems
        "datasets": [entry.dataset for entry in description.datasets],
        **{key: getattr(description, key) for key in ("folds", "seeds", "labelled", "metrics")},
    }
    twice = {k: sorted({str(e) for e in v if list(v).count(e) > 1}) for k, v in lists.items()}
    return [*wrong, *(f"{key} names {', '.join(entries)} twice." for key, entries in twice.items() if entries)]


def _plans(arms: Sequence[Arm]) -> list[str]:
    """What is wrong with where arms take their plans from."""
    with_weights = [arm.name for arm in arms if arm.weights is not None]
    wrong = []
    for arm in arms:
        if arm.plans is None and arm.weights is None and not with_weights:
            wrong.append(f'arm {arm.name} has no plans, and no arm with weights to take them from: "plans": "NAME".')
        if arm.like is not None and arm.like not in with_weights:
            wrong.append(
                f"arm {arm.name} is like {arm.like}, which is no arm with weights.{did_you_mean(arm.like, with_weights)} "
                f"Arms with weights: {', '.join(with_weights) or 'none'}."
            )
        if arm.plans is not None and arm.adapt is not None:
            wrong.append(f"arm {arm.name}: adapt is for new plans, and {arm.plans} are there. Leave one of them out.")
    return wrong


def read_description(folder: Path) -> Description | None:
    """The description in a comparison's folder, None where there is none. Raises BadFile and SettingsError."""
    path = folder / FILE
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise BadFile(f"{path}: must be a JSON object, found {type(content).__name__}", path=path)
    return parse_description(content, str(path))


def write_description(description: Description, folder: Path) -> None:
    """Write comparison.json."""
    write_json(description.to_json(), folder / FILE)


def differences(there: Description, asked: Description) -> list[str]:
    """What two descriptions say differently, each as "seeds: [0] there, [0, 1] asked for"."""
    before, now = there.to_json(), asked.to_json()
    return [
        f"{key}: {_short(before[key])} there, {_short(now[key])} asked for" for key in now if before[key] != now[key]
    ]


def _short(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(
            "(" + ", ".join(f"{k} {v}" for k, v in entry.items() if v is not None) + ")" for entry in value
        )
    return json.dumps(value)
