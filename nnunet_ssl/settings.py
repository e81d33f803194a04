"""The `ssl` and `finetune` blocks of a plans configuration, read and checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from nnunet_ssl.errors import SettingsError

C = TypeVar("C")
SAMPLING = ("images", "subjects", "modalities", "datasets")


def read_config(cls: type[C], block: Mapping[str, Any], where: str) -> C:
    """Build the dataclass `cls` from the dict `block`, refusing unknown keys and unfitting types.

    `where` names the block in error messages, e.g. 'plans["configurations"]["3d_fullres"]["ssl"]'.
    Raises SettingsError; the dataclass' own `__post_init__` may raise ValueError, which is passed on as one.
    """
    if not isinstance(block, Mapping):
        raise SettingsError(f"{where} must be a JSON object, found {type(block).__name__}.")
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    for key in block:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"{where}: unknown setting {key!r}.{hint} Known settings: {', '.join(sorted(known))}.")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in block.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{where}: {error}") from error


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless `condition` holds; for `__post_init__` of configs."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class ScheduleSettings:
    """What pre-training and fine-tuning have in common; None means: the recipe of the method and backbone."""

    num_epochs: int | None = None  # length of the run
    num_iterations_per_epoch: int = 250  # optimisation steps; an epoch is this many, however large the data set
    num_val_iterations_per_epoch: int = 50  # batches on which the loss is watched after every epoch
    optimizer: str | None = None  # "sgd" or "adamw"; another one than the recipe's brings its own numbers along
    initial_lr: float | None = None  # highest learning rate
    weight_decay: float | None = None  # on all parameters
    warmup_epochs: int | None = None  # linear; by default 50 of 1000, 15 of 150 to 300, a tenth of shorter runs
    grad_clip: float | None = (
        None  # largest L2 norm of all gradients together; larger ones are scaled down. 0: no clipping
    )
    seed: int = 0  # of weights, patches, masks and everything else that is drawn

    def __post_init__(self) -> None:
        for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
            value = getattr(self, name)
            integer = isinstance(value, int) and not isinstance(value, bool)
            require(value is None or (integer and value >= 1), f"{name} must be a whole number >= 1, found {value!r}.")
        require(self.optimizer in (None, "sgd", "adamw"), f'optimizer is "sgd" or "adamw", found {self.optimizer!r}.')
        for name in ("initial_lr", "weight_decay", "grad_clip"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            require(value is None or (number and value >= 0), f"{name} must be a number >= 0, found {value!r}.")
        require(
            self.warmup_epochs is None or (isinstance(self.warmup_epochs, int) and self.warmup_epochs >= 0),
            f"warmup_epochs must be a whole number >= 0, found {self.warmup_epochs!r}.",
        )
        require(isinstance(self.seed, int), f"seed must be a whole number, found {self.seed!r}.")


@dataclass(frozen=True)
class PretrainSettings(ScheduleSettings):
    """The `ssl` block without the methods' own blocks."""

    batch_size: int | None = None  # global, over all processes; None: the plans' batch size
    accumulate: int = (
        1  # parts in which a process' share of the batch goes through the network; less memory, same result
    )
    recompute: bool = (
        False  # forget activations, compute them again in the backward pass: less memory, a third more time
    )
    channels: str = "separate"  # "separate": every channel is a sample of its own; "together": kept as one image
    datasets: tuple[str, ...] = ()  # names of further data sets that form one corpus with the plans' own
    filter: str | None = (
        None  # only images that match, e.g. 'modality == "T1w" and iqs <= 2.5'; columns: docs/corpus.md
    )
    sampling: str = "images"  # "images", "subjects", "modalities" or "datasets": which of these are drawn equally often
    # Share of a training patch that must not be air, where preprocessing told air apart; mostly empty patches are drawn anew,
    # a few times. 0: take every patch
    min_foreground: float = 0.1
    # Weights, gradients and optimiser states spread over the processes (FSDP2): for networks too big for one device
    shard: bool = False
    # Deterministic algorithms on a GPU, where there are any, and no torch.compile: slower; CPUs are deterministic without
    deterministic: bool = False
    # End with exit code 4 where a run learns nothing or its embeddings collapse, after a tenth of it
    stop_on_collapse: bool = False
    save_every: int = 10  # epochs between two checkpoint_latest.pth, and at least between two checkpoint_best.pth

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.batch_size is None or (isinstance(self.batch_size, int) and self.batch_size >= 1),
            f"batch_size must be a whole number >= 1, found {self.batch_size!r}.",
        )
        require(
            isinstance(self.accumulate, int) and not isinstance(self.accumulate, bool) and self.accumulate >= 1,
            f"accumulate must be a whole number >= 1, found {self.accumulate!r}.",
        )
        if self.batch_size is not None and self.batch_size % self.accumulate:
            fitting = -(-self.batch_size // self.accumulate) * self.accumulate
            raise ValueError(
                f"A batch of {self.batch_size} cannot be taken in accumulate = {self.accumulate} equal parts. "
                f"Use a multiple of {self.accumulate}: --batch-size {fitting}"
            )
        require(isinstance(self.recompute, bool), f"recompute is true or false, found {self.recompute!r}.")
        require(
            self.channels in ("separate", "together"), f'channels is "separate" or "together", found {self.channels!r}.'
        )
        require(
            self.filter is None or (isinstance(self.filter, str) and bool(self.filter.strip())),
            f"filter must be an expression on the corpus table, found {self.filter!r}.",
        )
        require(self.sampling in SAMPLING, f"sampling is one of {', '.join(SAMPLING)}, found {self.sampling!r}.")
        require(
            type(self.min_foreground) in (int, float) and 0 <= self.min_foreground < 1,
            f"min_foreground must be a share from 0 to below 1, found {self.min_foreground!r}.",
        )
        for name in ("shard", "deterministic", "stop_on_collapse"):
            value = getattr(self, name)
            require(isinstance(value, bool), f"{name} is true or false, found {value!r}.")
        require(
            isinstance(self.save_every, int) and self.save_every >= 1,
            f"save_every must be a whole number >= 1, found {self.save_every!r}.",
        )


@dataclass(frozen=True)
class FinetuneSettings(ScheduleSettings):
    """The `finetune` block."""

    transfer: str = "encoder"  # "encoder" (OpenMind: encoder and stem) or "encoder+decoder" (Spark3D)
    channels: str = "repeat"  # of the stem: "repeat", "mean" or "random" where their number differs, or "by_name"
    # valley and sawtooth: epochs in which the decoder trains alone; by default 50, at most a tenth of the run
    decoder_epochs: int | None = None
    decoder_lr: float | None = None  # highest learning rate while the decoder trains alone; by default initial_lr
    deep_supervision: bool = (
        False  # U-Nets: loss at lower resolutions too, as nnU-Net trains; OpenMind's fine-tuning: none
    )
    drop_path: float = (
        0.0  # Primus: stochastic depth of the last block, whatever the plans say; OpenMind's fine-tuning has none
    )
    layer_decay: float = 0.75  # layer decay: factor on the learning rate from one layer to the one before it

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.decoder_epochs is None or (type(self.decoder_epochs) is int and self.decoder_epochs >= 0),
            f"decoder_epochs must be a whole number >= 0, found {self.decoder_epochs!r}.",
        )
        require(
            self.decoder_lr is None or (type(self.decoder_lr) in (int, float) and self.decoder_lr > 0),
            f"decoder_lr must be a number > 0, found {self.decoder_lr!r}.",
        )
        require(
            isinstance(self.deep_supervision, bool),
            f"deep_supervision is true or false, found {self.deep_supervision!r}.",
        )
        require(
            type(self.drop_path) in (int, float) and 0 <= self.drop_path < 1,
            f"drop_path must be a rate from 0 to below 1, found {self.drop_path!r}.",
        )
        require(
            type(self.layer_decay) in (int, float) and 0 < self.layer_decay <= 1,
            f"layer_decay must be a number above 0 and at most 1 (1: no decay), found {self.layer_decay!r}.",
        )
        require(
            self.transfer in ("encoder", "encoder+decoder"),
            f'transfer is "encoder" or "encoder+decoder", found {self.transfer!r}.',
        )
        require(
            self.channels in ("repeat", "mean", "by_name", "random"),
            f'channels is "repeat", "mean", "by_name" or "random", found {self.channels!r}.',
        )


@dataclass(frozen=True)
class PretrainBlock:
    """The whole `ssl` block: what holds for every task, and the block of every task that has one.

    A task's block holds the fields of its Config, and may hold any of the general settings as well, which then hold for this
    task alone: {"initial_lr": 1e-3, "voco": {"initial_lr": 1e-4, "target_crops": 8}}.
    """

    general: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    where: str

    @classmethod
    def read(cls, configuration: Mapping[str, Any], method_names: tuple[str, ...], name: str) -> PretrainBlock:
        """Read `configuration["ssl"]`; keys that are names of methods hold those methods' blocks. Raises SettingsError."""
        block = configuration.get("ssl", {})
        where = f'plans["configurations"]["{name}"]["ssl"]'
        if not isinstance(block, Mapping):
            raise SettingsError(f"{where} must be a JSON object, found {type(block).__name__}.")
        methods = {k: v for k, v in block.items() if k in method_names}
        general = {k: v for k, v in block.items() if k not in method_names}
        read_config(PretrainSettings, general, where)
        return cls(general, methods, where)

    def of(self, method: str, config: type[C]) -> tuple[PretrainSettings, C]:
        """(settings, config) of a task; raises SettingsError."""
        where, block = f'{self.where}["{method}"]', self.methods.get(method, {})
        if not isinstance(block, Mapping):
            raise SettingsError(f"{where} must be a JSON object, found {type(block).__name__}.")
        own, general = {f.name for f in fields(config)}, {f.name for f in fields(PretrainSettings)}  # type: ignore[arg-type]
        settings = {k: v for k, v in block.items() if k in general - own}
        rest = {k: v for k, v in block.items() if k not in settings}
        return (
            read_config(PretrainSettings, {**self.general, **settings}, where if settings else self.where),
            read_config(config, rest, where),
        )
