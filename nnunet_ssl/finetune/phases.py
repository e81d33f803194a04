"""A schedule put into effect: freezing, optimisers and learning rates of a network, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.finetune.layers import encoder_modules, encoder_parameters, layers
from nnunet_ssl.finetune.schedules import Schedule
from nnunet_ssl.recipes import Recipe, build_optimizer

FRESH = "fresh_in_encoder"  # key of a parameter group that holds names, so that every checkpoint has them


@dataclass(frozen=True)
class Group:
    """Parameters that train with the same learning rate."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    factor: float = 1.0  # on the schedule's learning rate


class Phases:
    """Makes a bare network train as a schedule says; what it does is a function of the epoch alone.

    While the decoder trains alone, the encoder has no gradients, no weight decay, no optimiser state, no dropout and no
    stochastic depth; its parameters that the checkpoint did not have (`fresh`, by name) train with the decoder.
    Whenever what trains changes, a new optimiser takes over. Plays the part of nnU-Net's learning-rate scheduler.
    Raises CheckpointError where the encoder must be known and the network does not say where it is.
    """

    optimizer: Optimizer
    fine: Tensor  # whether the gradients of the last step were finite, bool on their device

    def __init__(self, network: nn.Module, recipe: Recipe, schedule: Schedule, fresh: Sequence[str] = ()) -> None:
        self.network = network
        self.recipe = recipe
        self.schedule = schedule
        self.fresh = tuple(fresh)
        self.groups: list[Group] = []
        self._decoder_only: bool | None = None  # of the present optimiser
        self._frozen: list[nn.Parameter] = []
        self.enter(0)

    def enter(self, epoch: int) -> bool:
        """Prepare network and optimiser for an epoch; True when other parameters train than before."""
        decoder_only = self.schedule.phase(epoch).decoder_only
        if decoder_only == self._decoder_only:
            return False
        before = {id(p) for p in self.network.parameters() if p.requires_grad}
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []
        if decoder_only:
            encoder = encoder_parameters(self.network)
            self._frozen = [p for n, p in encoder.items() if p.requires_grad and n not in self.fresh]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
            parameter.grad = None
        self._decoder_only = decoder_only
        self.groups = self._build_groups()
        described: list[dict[str, Any]] = [{"params": list(g.parameters)} for g in self.groups]
        if decoder_only:
            described[0][FRESH] = list(self.fresh)
        self.optimizer = build_optimizer(described, self.recipe)
        self.optimizer.register_step_pre_hook(self._clip)
        self.optimizer.register_step_post_hook(self._forget)
        self.step(epoch)
        return before != {id(p) for p in self.network.parameters() if p.requires_grad}

    def start_with(self, fresh: Sequence[str]) -> bool:
        """Start epoch 0 over, knowing the names of the encoder's parameters that nothing was loaded into.

        True when other parameters train than before.
        """
        if tuple(fresh) == self.fresh:
            return False
        self.fresh, self._decoder_only = tuple(fresh), None
        return self.enter(0)

    def resume(self, finished: int, saved: Sequence[Mapping[str, Any]]) -> bool:
        """Prepare for the optimiser state of a checkpoint that was written when `finished` epochs were over.

        saved: the state's parameter groups. The state belongs to the last finished epoch, or to the next one where a signal
        interrupted that; they may train other parameters. True when other parameters train than before. Raises CheckpointError
        when the state can be of neither.
        """
        self.fresh, self._decoder_only = tuple(saved[0].get(FRESH, ())), None
        there = [len(group["params"]) for group in saved]
        changed = self.enter(max(0, finished - 1))
        if self._sizes() != there and finished < self.schedule.phases[-1].last + 1:
            changed |= self.enter(finished)
        if self._sizes() != there:
            raise CheckpointError(
                f"The checkpoint was written after {finished} epochs by an optimiser over {there} tensors; under the "
                f"present settings that optimiser has {self._sizes()}. Trainer, network or the phases have changed. Set "
                "num_epochs, decoder_epochs and warmup_epochs in the plans' finetune block back to what they were and "
                f"continue, or train anew without --c. Now there is\n{self.schedule}"
            )
        return changed

    def _sizes(self) -> list[int]:
        return [len(group["params"]) for group in self.optimizer.param_groups]

    def step(self, epoch: int) -> None:
        """Set the learning rates of an epoch; nnU-Net calls this at its start."""
        lr = self.schedule.lr(epoch)
        for group, described in zip(self.groups, self.optimizer.param_groups, strict=True):
            described["lr"] = lr * group.factor

    def set_modes(self) -> None:
        """Put what is frozen into evaluation mode: no dropout, no stochastic depth, no new running statistics."""
        if self._decoder_only:
            for module in encoder_modules(self.network):
                module.training = any(p.requires_grad for p in module.parameters(recurse=False))

    def phase_at(self, epoch: int) -> str:
        """One sentence on what trains now and how fast."""
        trained = sum(p.numel() for g in self.groups for p in g.parameters)
        everything = sum(p.numel() for p in self.network.parameters())
        text = f"{self.schedule.phase(epoch)}; {trained:,} of {everything:,} parameters train ({self.recipe.optimizer})"
        if self._decoder_only and self.fresh:
            text += f"; {len(self.fresh)} tensors of the encoder that nothing was loaded into train with the decoder"
        if len(self.groups) > 1:
            text += "; times " + ", ".join(f"{g.factor:.3g} for {g.name}" for g in self.groups)
        return f"{text}."

    def _build_groups(self) -> list[Group]:
        decay = self.schedule.layer_decay
        if decay is not None:
            found = layers(self.network)
            return [Group(name, tuple(p), decay**i) for i, (name, p) in enumerate(found)]
        name = "decoder" if self._decoder_only else "everything"
        return [Group(name, tuple(p for p in self.network.parameters() if p.requires_grad))]

    def _clip(self, optimizer: Any, *_: object) -> None:
        """Clip on top of nnU-Net's fixed 12, and have a step left out whose gradients are not finite.

        Without a GradScaler nobody else looks at that: on a CPU such gradients would become weights.
        """
        self.fine = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.max_norm).isfinite()
        self._looked = not hasattr(optimizer, "found_inf") and bool(optimizer.param_groups[0].get("fused"))
        if self._looked:
            optimizer.found_inf = (~self.fine).float()

    def _forget(self, optimizer: Any, *_: object) -> None:
        if self._looked:
            del optimizer.found_inf
