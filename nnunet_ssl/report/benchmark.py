"""The figures of one benchmark, as plain data: what the table, the picture and the JSON file are made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

PARTS = ("data", "transfer", "prepare", "forward", "backward", "optimiser", "rest")


@dataclass(frozen=True)
class Setting:
    """What was measured, where. `load_average`: processes that wanted a core when the measuring began."""

    method: str
    network: str
    parameters: int
    data: str
    patch_size: tuple[int, ...]
    batch_size: int
    accumulate: int
    recompute: bool
    precision: str
    device: str
    compiled: bool
    workers: int
    threads: int
    cores: int
    load_average: float | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Speed:
    """End to end: loader, step, everything; nothing waits for the device in between.

    samples_per_second comes from the whole time of all iterations, so that bursts of the loader count. Seconds are per
    iteration.
    """

    iterations: int
    warmup: int
    samples_per_second: float
    mean: float
    median: float
    p10: float
    p90: float


@dataclass(frozen=True)
class Breakdown:
    """Parts of a step, measured over further steps that wait for the device at the borders of the parts.

    shares: of the whole time; they add up to 1. seconds: median of each part per step.
    """

    iterations: int
    shares: dict[str, float]
    seconds: dict[str, float]
    mean: float


@dataclass(frozen=True)
class Memory:
    """Peaks in bytes; None where the device or system does not tell.

    device: of tensors on a GPU. reserved: what torch held of it for them, the gaps between them included.
    """

    device: int | None
    reserved: int | None
    process: int | None
    workers: int | None


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a step, and per second: reached end to end, and by the device at best."""

    per_iteration: int | None
    achieved: float | None
    matmul_peak_flops: float
    conv_peak_flops: float
    share_of_matmul: float | None
    share_of_conv: float | None


@dataclass(frozen=True)
class Estimate:
    """A whole run. Hours; bytes of one checkpoint; `checkpoints`: how often one is written, at most."""

    epochs: int
    iterations_per_epoch: int
    val_iterations_per_epoch: int
    samples: int
    hours: float
    training_hours: float
    validation_hours: float
    checkpoint_hours: float
    checkpoint_bytes: int
    checkpoint_seconds: float
    checkpoints: int
    disk_bytes: int


@dataclass(frozen=True)
class Benchmark:
    """Everything; `notes` are what a reader of the figures has to know."""

    setting: Setting
    speed: Speed
    breakdown: Breakdown
    memory: Memory
    flops: Flops
    estimate: Estimate
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Nested dicts with always the same keys; null where there is no figure."""
        return {"format": 3, **asdict(self)}
