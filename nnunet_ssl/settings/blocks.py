"""The `ssl` and `finetune` blocks of a plans configuration, read and checked.

What a setting may be stands in its type hint (`bounds`); `checker` compares. `__post_init__` refuses what
concerns several settings together, by a ValueError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, TypeVar, get_args

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.settings.allowed import AXES
from nnunet_ssl.settings.bounds import Count, Expression, Name, NotNegative, Positive, Rate, Share, Whole
from nnunet_ssl.settings.checker import check_block

C = TypeVar("C")
Optimizer = Literal["sgd", "adamw"]
Sampling = Literal["images", "subjects", "modalities", "datasets"]
SAMPLING = get_args(Sampling)


def read_config(cls: type[C], block: Mapping[str, Any], where: str, axes: int = AXES) -> C:
    """The config dataclass `cls` made from the dict `block`; see `checker` for what is converted.

    `where` names the block in error messages, e.g. 'plans["configurations"]["3d_fullres"]["ssl"]'; axes: of the patch.
    Raises SettingsError for unknown keys, values that do not fit, all of them in one message, and for what the dataclass'
    own `__post_init__` refuses by a ValueError.
    """
    values = read_values(cls, block, where, axes)
    try:
        return cls(**values)
    except ValueError as error:
        raise SettingsError(f"{where}: {error}", found=values) from error


def read_values(
    cls: type, block: Mapping[str, Any], where: str, axes: int = AXES, whole: bool = True
) -> dict[str, Any]:
    """The entries of `block`, each as the hint of its field in `cls` says; raises SettingsError as `read_config`.

    whole: False where the block is a part of one, so that fields without a default may be missing.
    """
    if not isinstance(block, Mapping):
        raise SettingsError(f"{where} must be a JSON object, found {type(block).__name__}.", found=block)
    checked = check_block(cls, block, axes, whole)
    if checked.refusals:
        raise SettingsError(f"{where}: {' '.join(checked.refusals)}", expected=checked.expected, found=checked.found)
    return checked.values


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless `condition` holds; for `__post_init__` of configs."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class ScheduleSettings:
    """What pre-training and fine-tuning have in common; None means: the recipe of the method and backbone."""

    num_epochs: Count | None = None  # length of the run
    num_iterations_per_epoch: Count = 250  # optimisation steps; an epoch is this many, however large the data set
    num_val_iterations_per_epoch: Count = 50  # batches on which the loss is watched after every epoch
    optimizer: Optimizer | None = None  # another one than the recipe's brings its own numbers along
    initial_lr: NotNegative | None = None  # highest learning rate
    weight_decay: NotNegative | None = None  # on all parameters
    warmup_epochs: Whole | None = None  # linear; by default 50 of 1000, 15 of 150 to 300, a tenth of shorter runs
    # Largest L2 norm of all gradients together; larger ones are scaled down. 0: no clipping
    grad_clip: NotNegative | None = None
    seed: Whole = 0  # of weights, patches, masks and everything else that is drawn


@dataclass(frozen=True)
class PretrainSettings(ScheduleSettings):
    """The `ssl` block without the methods' own blocks."""

    batch_size: Count | None = None  # global, over all processes; None: the plans' batch size
    # Micro-batches in which a process' share of the batch goes through the network; less memory, same result
    accumulate: Count = 1
    # Forget activations, compute them again in the backward pass: less memory, a third more time
    recompute: bool = False
    # "separate": every channel is a sample of its own; "together": kept as one image
    channels: Literal["separate", "together"] = "separate"
    datasets: tuple[Name, ...] = ()  # names of further data sets that form one corpus with the plans' own
    # Only images that match, e.g. 'modality == "T1w" and iqs <= 2.5'; columns: docs/corpus.md
    filter: Expression | None = None
    sampling: Sampling = "images"  # which of these are drawn equally often
    # Share of a training patch that must not be air, where preprocessing told air apart; mostly empty patches are drawn anew,
    # a few times. 0: take every patch
    min_foreground: Rate = 0.1
    # Weights, gradients and optimiser states spread over the processes (FSDP2): for networks too big for one device
    shard: bool = False
    # Deterministic algorithms on a GPU, where there are any, and no torch.compile: slower; CPUs are deterministic without
    deterministic: bool = False
    # End with exit code 4 where a run learns nothing or its embeddings collapse, after a tenth of it
    stop_on_collapse: bool = False
    # End, as a finished run, when the validation loss has not become lower for so many epochs
    early_stop: Count | None = None
    # A raw data set whose labels, or targets.csv, a linear model tells from the frozen features, to see when to stop
    probe: Name | None = None
    probe_every: Count = 10  # epochs between two probes
    # Previews also as NIfTI images, a folder per picture, to be opened in a viewer
    preview_nifti: bool = False
    save_every: Count = 10  # epochs between two checkpoint_latest.pth, and at least between two checkpoint_best.pth

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size % self.accumulate:
            fitting = -(-self.batch_size // self.accumulate) * self.accumulate
            raise ValueError(
                f"A batch of {self.batch_size} cannot be taken in accumulate = {self.accumulate} equal parts. "
                f"Use a multiple of {self.accumulate}: --batch-size {fitting}"
            )


# Settings of how a run is computed and watched: the network that comes out is the same.
HOW = frozenset(
    {
        "accumulate",
        "recompute",
        "shard",
        "deterministic",
        "save_every",
        "stop_on_collapse",
        "early_stop",
        "preview_nifti",
        "probe",
        "probe_every",
    }
)


@dataclass(frozen=True)
class FinetuneSettings(ScheduleSettings):
    """The `finetune` block."""

    # "encoder": encoder and stem, as OpenMind; "encoder+decoder": as Spark3D
    transfer: Literal["encoder", "encoder+decoder"] = "encoder"
    # Of the stem: "repeat", "mean" or "random" where their number differs, or "by_name"
    channels: Literal["repeat", "mean", "by_name", "random"] = "repeat"
    # Of weights with a stem for every data set (MultiTalent): which one, by id or number, or "mean"; None: the file's own for CT,
    # else their mean
    stem: Name | None = None
    # valley and sawtooth: epochs in which the decoder trains alone; by default 50, at most a tenth of the run
    decoder_epochs: Whole | None = None
    decoder_lr: Positive | None = None  # highest learning rate while the decoder trains alone; by default initial_lr
    # U-Nets: loss at lower resolutions too, as nnU-Net trains; OpenMind's fine-tuning: none
    deep_supervision: bool = False
    # Primus: stochastic depth of the last block, whatever the plans say; OpenMind's fine-tuning has none
    drop_path: Rate = 0.0
    save_every: Count = 50  # epochs between two checkpoint_latest.pth
    # End, as a finished run, when the moving average of the pseudo Dice has not become higher for so many epochs
    early_stop: Count | None = None
    layer_decay: Share = 0.75  # layer decay: factor on the learning rate from one layer to the one before it; 1: none


@dataclass(frozen=True)
class PretrainBlock:
    """The whole `ssl` block: what holds for every task, and the block of every task that has one.

    A task's block holds the fields of its Config, and may hold any of the general settings as well, which then hold for this
    task alone: {"initial_lr": 1e-3, "voco": {"initial_lr": 1e-4, "target_crops": 8}}.
    """

    general: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    where: str
    axes: int = AXES  # of the patch

    @classmethod
    def read(cls, configuration: Mapping[str, Any], method_names: tuple[str, ...], name: str) -> PretrainBlock:
        """Read `configuration["ssl"]`; keys that are names of methods hold those methods' blocks. Raises SettingsError.

        name: of the configuration.
        """
        patch = configuration.get("patch_size")
        axes = len(patch) if isinstance(patch, (list, tuple)) and patch else AXES
        block = cls.split(configuration.get("ssl", {}), method_names, f'plans["configurations"]["{name}"]["ssl"]', axes)
        read_config(PretrainSettings, block.general, block.where, axes)
        return block

    @classmethod
    def split(cls, block: Any, method_names: tuple[str, ...], where: str, axes: int = AXES) -> PretrainBlock:
        """Tell methods' blocks from general settings, and look at neither; raises SettingsError for what is no JSON object."""
        if not isinstance(block, Mapping):
            raise SettingsError(f"{where} must be a JSON object, found {type(block).__name__}.", found=block)
        methods = {k: v for k, v in block.items() if k in method_names}
        return cls({k: v for k, v in block.items() if k not in method_names}, methods, where, axes)

    def of(self, method: str, config: type[C]) -> tuple[PretrainSettings, C]:
        """(settings, config) of a task; raises SettingsError."""
        settings, own, where = self._own(method, config)
        merged, named = {**self.general, **settings}, where if settings else self.where
        read, read_own = all_at_once(
            lambda: read_config(PretrainSettings, merged, named, self.axes),
            lambda: read_config(config, own, where, self.axes),
        )
        return read, read_own

    def converted(self, config_of: Callable[[str], type]) -> dict[str, Any]:
        """The block with every value as its hint says, in lists and not in tuples; raises one SettingsError for all of them.

        config_of: gives the Config of a method by its name.
        """

        def general() -> dict[str, Any]:
            return read_values(PretrainSettings, self.general, self.where, self.axes, whole=False)

        def of(method: str) -> dict[str, Any]:
            config = config_of(method)
            settings, own, where = self._own(method, config)
            read = (
                lambda: read_values(PretrainSettings, settings, where, self.axes, whole=False),
                lambda: read_values(config, own, where, self.axes, whole=False),
            )
            first, second = all_at_once(*read)
            return {**first, **second}

        block, *blocks = all_at_once(general, *(partial(of, method) for method in self.methods))
        return json.loads(json.dumps({**block, **dict(zip(self.methods, blocks, strict=True))}))

    def _own(self, method: str, config: type) -> tuple[dict[str, Any], dict[str, Any], str]:
        """(general settings, own settings, what messages call them) of a method's block."""
        where, block = self._where(method), self.methods.get(method, {})
        if not isinstance(block, Mapping):
            raise SettingsError(f"{where} must be a JSON object, found {type(block).__name__}.", found=block)
        own, general = {f.name for f in fields(config)}, {f.name for f in fields(PretrainSettings)}
        settings = {k: v for k, v in block.items() if k in general - own}
        return settings, {k: v for k, v in block.items() if k not in settings}, where

    def _where(self, method: str) -> str:
        return f'{self.where}["{method}"]' if self.where.endswith("]") else f"{self.where}, {method}"


def all_at_once(*reads: Callable[[], Any]) -> list[Any]:
    """The results of several functions; raises one SettingsError with the messages of all that raised one."""
    results, errors = [], []
    for read in reads:
        try:
            results.append(read())
        except SettingsError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        different = list(dict.fromkeys(str(error) for error in errors))
        raise SettingsError(" ".join(different), found=[error.found for error in errors])
    return results
