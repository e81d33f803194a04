"""What is not finite never becomes a weight, and is said at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from nnunet_ssl.errors import TrainingError
from nnunet_ssl.trainers.context import Counted

LINES = 5  # about steps of one epoch; more are counted


def step_where(optimizer: Optimizer, fine: Tensor) -> None:
    """Move the weights where `fine` (bool, on their device) holds; otherwise they and the optimiser's state stay as they are.

    Optimisers of one kernel decide that on the device. Sharded ones cannot: there the gradients become zero instead, so that
    momentum and weight decay go on for this step.
    """
    if all(group.get("fused") for group in optimizer.param_groups) and not is_sharded(optimizer):
        optimizer.found_inf = (~fine).float()  # type: ignore[attr-defined]  # as torch's GradScaler tells it
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
        return
    if fine.device.type == "cpu" and not is_sharded(optimizer):
        if bool(fine):
            optimizer.step()
        return
    for gradient in gradients_of(optimizer):
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        local.copy_(torch.where(fine, local, torch.zeros_like(local)))
    optimizer.step()


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    """All gradients that an optimiser is about to use."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def is_sharded(optimizer: Optimizer) -> bool:
    """Whether its parameters are spread over processes."""
    return any(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"][:1])


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of all tensors are finite, in all processes where they are sharded; waits for the device once."""
    given = list(tensors)
    sharded = any(isinstance(t, DTensor) for t in given)
    local = [t.to_local() if isinstance(t, DTensor) else t for t in given]
    known = [t for t in local if t.is_floating_point() and t.numel()]
    # A norm in float32 may overflow where the numbers do not; the largest of them cannot.
    largest = torch.stack(torch._foreach_norm(known, float("inf"))) if known else torch.zeros(1)
    fine = largest.isfinite().all().float()
    if sharded:
        dist.all_reduce(fine, dist.ReduceOp.MIN)
    return bool(fine)


def require_finite(tensors: Iterable[Tensor], lr: float, last: str) -> None:
    """Raise TrainingError, naming the last good checkpoint, where weights are not finite any more."""
    if not all_finite(tensors):
        raise TrainingError(
            "The weights are not finite any more, so they are not saved: "
            f"{last}. Continue from there with a smaller learning rate (initial_lr in the plans' block, now {lr:g})."
        )


def require_progress(trainer: Counted, left_out: int, block: str) -> None:
    """Raise TrainingError when most steps of an epoch were left out, because their loss or gradients were not finite.

    block: of the plans, which holds the trainer's settings. A GradScaler begins with a scale that may be too large and halves
    it with every step that it leaves out: a short first epoch may consist of these.
    """
    scaler, steps = trainer.grad_scaler, trainer.num_iterations_per_epoch
    if left_out <= steps / 2 or (scaler is not None and scaler.get_scale() >= 1):
        return
    epoch = trainer.current_epoch + (block == "ssl")  # nnU-Net counts from 0, a pre-training's log from 1
    raise TrainingError(
        f"{left_out} of {steps} steps of epoch {epoch} had a loss or gradients that are not finite and were "
        f'left out. The last checkpoint is from before. Lower the learning rate ("initial_lr" in the plans\' {block} block, '
        f"now {trainer.initial_lr}) and continue."
    )


class Watch:
    """Says in the log which steps had a loss or gradients that are not finite, as soon as that is known without waiting.

    say: is told each line. scaled: whether a GradScaler multiplies the gradients, and halves its scale when they overflow.
    """

    def __init__(self, say: Callable[[str], object], scaled: bool = False) -> None:
        self.say, self.scaled = say, scaled
        self.count = 0  # of this epoch
        self._pending: deque[tuple[str, Sequence[str], Tensor, torch.cuda.Event | None]] = deque()

    def note(self, place: str, loss: Tensor, fine: Tensor, images: Sequence[str]) -> None:
        """Take note of a step. place: where in the training; fine: what `step_where` was given; images: their names."""
        flags, event = torch.stack([loss.isfinite(), fine]), None
        if flags.device.type == "cuda":
            flags = torch.empty(2, dtype=torch.bool, pin_memory=True).copy_(flags, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((place, images, flags, event))
        self.look()

    def look(self, wait: bool = False) -> None:
        """Say what has become known; with `wait`, of all steps so far."""
        while self._pending:
            place, images, flags, event = self._pending[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self._pending.popleft()
            loss_is_fine, moved = flags.tolist()
            if not moved:
                self._tell(place, "gradients" if loss_is_fine else "loss", images)

    def end_epoch(self) -> int:
        """Say what is left to say, and begin to count anew; returns how many steps of the epoch were left out."""
        self.look(wait=True)
        left_out, self.count = self.count, 0
        if left_out > LINES:
            self.say(f"WARNING: {left_out} steps of this epoch were left out because they were not finite.")
        return left_out

    def _tell(self, place: str, what: str, images: Sequence[str]) -> None:
        self.count += 1
        if self.count <= LINES:
            are = "are" if what == "gradients" else "is"
            scale = "; the scale of the gradients is halved" if self.scaled and what == "gradients" else ""
            self.say(
                f"WARNING: {place}: the {what} {are} not finite, so this step is left out and the weights stay as they "
                f"are{scale}. Images: {', '.join(images)}"
            )
