"""Optimisers and learning-rate schedules: the published recipes, and the settings that replace parts of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.settings.blocks import ScheduleSettings


@dataclass(frozen=True)
class Recipe:
    """Everything an optimisation needs to know, learning rates per step, lengths in epochs; and where it is from."""

    optimizer: str
    initial_lr: float
    weight_decay: float
    num_epochs: int
    warmup_epochs: int
    grad_clip: float  # largest L2 norm of all gradients together; 0: no clipping
    source: str = ""

    @property
    def max_norm(self) -> float:
        """What gradients are scaled down to."""
        return self.grad_clip or math.inf


# The OpenMind benchmark (https://arxiv.org/abs/2412.17041) as its code, nnssl, runs it: one recipe per kind of network, but
# for the tasks in DEVIATIONS.
PRETRAINING = {
    "unet": Recipe(
        "sgd", 1e-2, 3e-5, num_epochs=1000, warmup_epochs=0, grad_clip=12.0,
        source="OpenMind: nnU-Net's recipe (nnssl, AbstractTrainer)",
    ),
    "primus": Recipe(
        "adamw", 3e-4, 5e-2, num_epochs=1000, warmup_epochs=50, grad_clip=1.0,
        source="OpenMind: Primus' recipe (nnssl, the Eva trainers)",
    ),
}  # fmt: skip
# What differs from that, by task and kind of network.
DEVIATIONS: dict[tuple[str, str], dict[str, Any]] = {
    # Clipped at 12 as everything else it collapses: all embeddings equal after 160 steps (benchmarks/LOG.md).
    ("simclr", "unet"): {"grad_clip": 0.1, "source": "OpenMind (nnssl, SimCLRTrainer)"},
    ("voco", "unet"): {"grad_clip": 0.0, "source": "OpenMind (nnssl, VoCoTrainer, does not clip)"},
    # With SGD neither prototypes nor heads had learned anything after 90 steps in which AdamW had.
    ("self_distillation", "unet"): {
        "optimizer": "adamw", "initial_lr": 3e-4, "weight_decay": 5e-2, "warmup_epochs": 50, "grad_clip": 1.0,
        "source": "AdamW as SMIT, iBOT and DINOv2; numbers of Primus' recipe",
    },
}  # fmt: skip
# Fine-tuning and training from scratch, as shipped with the OpenMind weights in nnU-Net's development branch.
FINETUNING = {
    "unet": Recipe(
        "sgd", 1e-3, 3e-5, num_epochs=1000, warmup_epochs=50, grad_clip=12.0, source="nnU-Net's PretrainedTrainer"
    ),
    "primus": Recipe(
        "adamw",
        1e-4,
        5e-2,
        num_epochs=1000,
        warmup_epochs=50,
        grad_clip=1.0,
        source="nnU-Net's PretrainedTrainer_Primus",
    ),
}
SCRATCH = {
    "unet": replace(FINETUNING["unet"], initial_lr=1e-2, source="nnU-Net's PretrainedTrainer --from_scratch"),
    "primus": replace(
        FINETUNING["primus"], initial_lr=3e-4, source="nnU-Net's PretrainedTrainer_Primus --from_scratch"
    ),
}
OVERRIDABLE = ("initial_lr", "weight_decay", "grad_clip")


def pretraining(method: str) -> dict[str, Recipe]:
    """The recipe of a task for each kind of network."""
    return {kind: replace(recipe, **DEVIATIONS.get((method, kind), {})) for kind, recipe in PRETRAINING.items()}


def short_phase(num_epochs: int) -> int:
    """Length in epochs of a warm-up, or of the decoder alone, where nobody set it.

    The published ones are 50 of 1000, 15 of 300 and of 150, 3 of 30: a twentieth of long runs, a tenth of short ones.
    """
    return min(50, max(num_epochs // 20, min(15, num_epochs // 10)))


def resolve(recipes: dict[str, Recipe], backbone: str, settings: ScheduleSettings) -> Recipe:
    """Recipe of a backbone ("unet" or "primus") with everything replaced that the settings set.

    Another optimiser than the recipe's brings its own learning rate, weight decay, warm-up and clipping along, because the
    numbers of one are meaningless for the other. A warm-up nobody asked for is as long as `short_phase` says.
    """
    recipe = recipes[backbone]
    if settings.optimizer not in (None, recipe.optimizer):
        # Some tasks have the same optimiser for every kind of network; the usual recipes have both.
        other = next(r for r in (*recipes.values(), *PRETRAINING.values()) if r.optimizer == settings.optimizer)
        recipe = replace(other, num_epochs=recipe.num_epochs)
    num_epochs = recipe.num_epochs if settings.num_epochs is None else settings.num_epochs
    warmup = settings.warmup_epochs
    if warmup is None:
        warmup = min(recipe.warmup_epochs, short_phase(num_epochs))
    if warmup >= num_epochs > 1:
        raise SettingsError(
            f"A warm-up of {warmup} epochs leaves nothing of a run of {num_epochs}. Set warmup_epochs below num_epochs."
        )
    asked = {name: getattr(settings, name) for name in OVERRIDABLE if getattr(settings, name) is not None}
    return replace(recipe, **asked, num_epochs=num_epochs, warmup_epochs=warmup)


def build_optimizer(
    parameters: Iterable[nn.Parameter] | list[dict[str, Any]], recipe: Recipe, fused: bool = True
) -> Optimizer:
    """SGD with Nesterov momentum 0.99 or AdamW with betas (0.9, 0.98).

    Over the parameters that want gradients, or over parameter groups as torch's optimisers take them. `fused`: as one
    kernel, which is fastest.
    """
    wanted: list[Any] = [p for p in parameters if isinstance(p, dict) or p.requires_grad]
    if recipe.optimizer == "sgd":
        optimizer: Optimizer = torch.optim.SGD(
            wanted, lr=recipe.initial_lr, weight_decay=recipe.weight_decay, momentum=0.99, nesterov=True, fused=fused
        )
        begin_momentum(optimizer)
        optimizer.register_load_state_dict_post_hook(begin_momentum)
    else:
        optimizer = torch.optim.AdamW(
            wanted, lr=recipe.initial_lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.98), fused=fused
        )
    optimizer.register_load_state_dict_post_hook(match_layout)
    return optimizer


def begin_momentum(optimizer: Optimizer) -> None:
    """Let the momentum of SGD begin at zero, which gives the same first step, instead of at nothing.

    torch's one-kernel SGD makes its buffers of uninitialised memory in its first step; where a GradScaler skips that step,
    as it does when its first scale is too large, they stay what they are, and the second step adds them to the weights.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def match_layout(optimizer: Optimizer) -> None:
    """Give the states of an optimiser the memory layout of their parameters; one-kernel optimisers demand that."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            same = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if same and value.ndim > 3 and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def rising_lr(peak: float, epoch: int, length: int) -> float:
    """Learning rate of epoch 0, 1, ... of a linear warm-up of `length` epochs, which ends at `peak`."""
    return peak / length * (1 + epoch)


def falling_lr(peak: float, epoch: int, length: int) -> float:
    """Learning rate of epoch 0, 1, ... of a polynomial decay over `length` epochs, which starts at `peak`."""
    return float(peak * (1 - epoch / length) ** 0.9)


class WarmupPolyLR:
    """Linear warm-up over the first epochs, then polynomial decay with exponent 0.9.

    A pure function of the epoch, so that a resumed run needs no state: lr0 / W * (1 + e) for e < W, afterwards
    lr0 * (1 - (e - W) / (N - W)) ** 0.9.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe) -> None:
        self.optimizer = optimizer
        self.recipe = recipe

    def lr(self, epoch: int) -> float:
        """Learning rate of an epoch."""
        r = self.recipe
        if epoch < r.warmup_epochs:
            return rising_lr(r.initial_lr, epoch, r.warmup_epochs)
        return falling_lr(r.initial_lr, epoch - r.warmup_epochs, r.num_epochs - r.warmup_epochs)

    def step(self, epoch: int) -> None:
        """Set the learning rate of every parameter group for `epoch`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(epoch)
