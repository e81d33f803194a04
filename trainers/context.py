"""What the rooms of this folder may read of a run. `SSLTrainer` fits all of it; nothing in these rooms imports it.

A step, a loader and a checkpoint each say what they need, and none of them can set any of it: a Protocol's properties are
read-only. A test, a benchmark or a task of one's own can stand in with any object that has these attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor
from torch.optim import Optimizer

from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.recipes import Recipe
from nnunet_ssl.settings.blocks import PretrainSettings
from nnunet_ssl.trainers.device.compiling import Compiler
from nnunet_ssl.trainers.distributed.processes import Consensus
from nnunet_ssl.trainers.loop.interruption import Interruption
from nnunet_ssl.trainers.loop.position import Position
from nnunet_ssl.views.spec import Views


class Planned(Protocol):
    """What is known of a training by its plans, its fold and its device."""

    @property
    def plans_manager(self) -> PlansManager:
        """nnU-Net's view of the plans."""

    @property
    def configuration_manager(self) -> ConfigurationManager:
        """And of their configuration."""

    @property
    def configuration_name(self) -> str:
        """E.g. "3d_fullres"."""

    @property
    def fold(self) -> int | str:
        """A number, or "all"."""

    @property
    def device(self) -> torch.device:
        """Of this process."""

    @property
    def is_ddp(self) -> bool:
        """Whether several processes train together."""

    @property
    def batch_size(self) -> int:
        """Samples per step and process."""


class Context(Planned, Protocol):
    """What every room needs."""

    @property
    def settings(self) -> PretrainSettings:
        """Of the plans' `ssl` block."""

    @property
    def views(self) -> Views:
        """What one sample consists of."""


class StepContext(Context, Protocol):
    """What one optimisation step needs."""

    @property
    def method(self) -> Method:
        """The task, without the wrappers of DDP and torch.compile."""

    @property
    def network(self) -> Any:
        """The task as it is called: maybe sharded, compiled, or inside of DDP's wrapper."""

    @property
    def encode(self) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        """`Method.encode`, maybe compiled or sharded."""

    @property
    def compare(self) -> Callable[[dict[str, Tensor], dict[str, Tensor]], MethodOutput]:
        """`Method.compare`, likewise."""

    @property
    def drop_paths(self) -> Any:
        """The modules of stochastic depth."""

    @property
    def optimizer(self) -> Optimizer:
        """Of all parameters."""

    @property
    def grad_scaler(self) -> torch.amp.GradScaler | None:
        """Where gradients are float16."""

    @property
    def recipe(self) -> Recipe:
        """Optimiser, learning rate, clipping, epochs."""

    def warn_once(self, message: str) -> None:
        """Put a warning into the log, the first time it comes."""


class LoaderContext(Context, Protocol):
    """What choosing, splitting and loading the images of a corpus needs."""

    @property
    def dataset_json(self) -> dict[str, Any]:
        """Of the first data set."""

    @property
    def total_batch_size(self) -> int:
        """And of all processes together."""

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Say something, once for all processes."""

    def say_once(self, message: str) -> None:
        """Say something the first time it comes."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802  # nnU-Net's name
        """nnU-Net's choice of rotations and mirror axes."""


class CheckpointContext(StepContext, LoaderContext, Protocol):
    """What a checkpoint holds."""

    @property
    def num_input_channels(self) -> int:
        """Of the network."""

    @property
    def method_name(self) -> str:
        """As in the plans' `ssl` block."""

    @property
    def method_config(self) -> Any:
        """An object of the task's `Config`."""

    @property
    def position(self) -> Position:
        """Where the run stands."""

    @property
    def logger(self) -> Any:
        """nnU-Net's, whose curves go on when the run does."""

    @property
    def my_init_kwargs(self) -> dict[str, Any]:
        """nnU-Net's record of how the trainer was made."""

    @property
    def inference_allowed_mirroring_axes(self) -> Any:
        """nnU-Net's."""


class Stoppable(Protocol):
    """What leaving a run needs, be it a pre-training or a fine-tuning."""

    @property
    def consensus(self) -> Consensus:
        """What the processes agree on."""

    @property
    def interruption(self) -> Interruption:
        """The signals that were received."""

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Say something, once for all processes."""


class Counted(Protocol):
    """What judging the steps of an epoch needs, of a pre-training or a fine-tuning."""

    @property
    def current_epoch(self) -> int:
        """Of `position`."""

    @property
    def num_iterations_per_epoch(self) -> int:
        """Of the settings."""

    @property
    def initial_lr(self) -> float:
        """Of the recipe."""

    @property
    def grad_scaler(self) -> torch.amp.GradScaler | None:
        """Where gradients are float16."""


class TrainingContext(Planned, Counted, Protocol):
    """What the log says of a training, of either kind, when it starts."""

    @property
    def num_epochs(self) -> int:
        """Of the recipe."""

    @property
    def num_input_channels(self) -> int:
        """Of the network."""

    @property
    def recipe(self) -> Recipe:
        """Optimiser, learning rate, clipping, epochs."""

    @property
    def output_folder(self) -> str:
        """Of the run's results."""

    @property
    def output_folder_base(self) -> str:
        """Of all folds: where the plans lie."""


class RunContext(CheckpointContext, Stoppable, TrainingContext, Protocol):
    """What surrounds the steps needs: epochs, signals, held-out cases."""

    warned_of_collapse: bool

    @property
    def method_class(self) -> type[Method]:
        """Of the task."""

    @property
    def wants_determinism(self) -> bool:
        """Whether deterministic algorithms were asked for, on a device that has others."""

    @property
    def compiler(self) -> Compiler:
        """What torch.compile made, or was not asked to."""

    @property
    def probe(self) -> Any:
        """A `loop.probing.Probe` in the first process of a run that asked for one."""

    @property
    def share_of_epoch(self) -> float:
        """Of its training iterations that were computed since its start was noted."""

    @property
    def save_every(self) -> int:
        """Epochs between checkpoints."""

    @property
    def disable_checkpointing(self) -> bool:
        """nnU-Net's flag."""

    @property
    def preview(self) -> dict[str, Tensor]:
        """Of the first held-out image: [C, *spatial] each."""

    @property
    def log_file(self) -> str:
        """nnU-Net's, of this start of the run."""

    @property
    def preview_key(self) -> str:
        """Of that image, `<data set>/<case>`; of several where samples have several."""

    def do_split(self) -> tuple[list[str], list[str]]:
        """(training, validation) identifiers."""

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Iterators over training and validation batches."""

    def save_checkpoint(self, filename: str) -> None:
        """Write where the run stands."""
