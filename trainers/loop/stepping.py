"""One optimisation step: a batch becomes a loss and gradients, in one piece or in micro-batches, and the weights move.

With `accumulate` N, a batch is prepared as a whole, so masks and crops are those of a run without it, and goes through the
network in N micro-batches. Losses over single images are added up one after the other. Losses that compare images are computed
on the whole batch: the micro-batches are encoded without gradients, compared, and encoded again with the gradients of their
embeddings (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021, https://arxiv.org/abs/2101.06983).
Either way loss and gradients are those of the whole batch, but for rounding. So they are when processes share the batch:
crops, masks and the paths of stochastic depth belong to the images, by their number in the global batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssl.backbones.drop_path import use_keys
from nnunet_ssl.losses.gather import shared_counts
from nnunet_ssl.methods.base import Method, MethodOutput
from nnunet_ssl.trainers.context import StepContext
from nnunet_ssl.trainers.data.corpus import derive_seed
from nnunet_ssl.trainers.data.packing import unpack
from nnunet_ssl.trainers.device.precision import autocast
from nnunet_ssl.trainers.distributed.sharding import clip_gradients
from nnunet_ssl.trainers.loop.finite import step_where
from nnunet_ssl.trainers.loop.micro_batches import merge_encoded, split_inputs
from nnunet_ssl.trainers.profiling.spans import span
from nnunet_ssl.views.rng import ImageGenerator

Meeting = Callable[[], AbstractContextManager[object]]
IMAGE_KEYS = "image_keys"  # entry of the inputs, on the host: which image has which random numbers


def run_batch(context: StepContext, batch: Mapping[str, Any], stream: int, step: int) -> MethodOutput:
    """Run the method on a batch of the loader, with the random numbers that belong to this step."""
    return prepare_batch(context, batch, stream, step)(None)


def prepare_batch(
    context: StepContext, batch: Mapping[str, Any], stream: int, step: int
) -> Callable[[Meeting | None], MethodOutput]:
    """Bring a batch of the loader to the device and do to it what the method does, with this step's random numbers.

    Returns what runs the method on it, the same each time it is called; for its argument see `run_prepared`.
    """
    rank = dist.get_rank() if context.is_ddp else 0
    inputs, images = prepare_inputs(context, batch, stream, step)
    own_seed = derive_seed(context.settings.seed, stream, step, rank, 2)
    return partial(run_prepared, context, inputs, images, context.settings.accumulate, own_seed)


def prepare_inputs(
    context: StepContext, batch: Mapping[str, Any], stream: int, step: int
) -> tuple[dict[str, Tensor], int]:
    """(what the method makes of a batch with this step's random numbers, number of images); the same each time it is called."""
    rank = dist.get_rank() if context.is_ddp else 0
    seed = derive_seed(context.settings.seed, stream, step, 1)
    with span("transfer"):
        batch = {k: v.to(context.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
    with span("prepare"), torch.no_grad():
        tensors = unpack(batch, context.views)
    images = len(tensors["image"])
    generator = ImageGenerator(context.device, seed, range(rank * images, (rank + 1) * images))
    with span("prepare"), torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        inputs = context.method.prepare(tensors, generator)
    for warning in caught:
        context.warn_once(str(warning.message))
    return {**inputs, IMAGE_KEYS: generator.keys}, images


def run_prepared(
    context: StepContext,
    inputs: dict[str, Tensor],
    images: int,
    micro_batches: int,
    seed: int,
    meet: Meeting | None = None,
) -> MethodOutput:
    """Loss of prepared inputs, computed in equal micro-batches; adds gradients to the weights where gradients are wanted.

    With `meet`, processes that share the batch keep their gradients to themselves, and everything that the compiler made runs
    before or after what they exchange; that happens in the context `meet()`, which may raise.
    """
    method: Method = context.method
    counts = method.counts(inputs)
    inputs = {**inputs, **shared_counts(counts, together=method.training)}
    split = split_inputs(inputs, images, micro_batches, counts)
    torch.manual_seed(seed)  # dropout, where plans have it, draws from the global generator
    if method.compares and (micro_batches > 1 or meet is not None):
        return _compare_micro_batches(context, inputs, split, images, seed, meet)
    return _add_micro_batches(context, split, alone=meet is not None)


def _choose_paths(context: StepContext, micro_batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tell stochastic depth which images it is about to see; returns what the method is to see."""
    if IMAGE_KEYS in micro_batch:
        use_keys(context.drop_paths, micro_batch[IMAGE_KEYS], context.device)
    return {name: value for name, value in micro_batch.items() if name != IMAGE_KEYS}


def _backward(context: StepContext, loss: Tensor) -> None:
    if torch.is_grad_enabled():
        # Where a loss is not finite, no gradient is, whatever it depends on: all processes see that, and leave the step out.
        loss = loss * (loss.detach() * 0 + 1)
        with span("backward"):
            (loss if context.grad_scaler is None else context.grad_scaler.scale(loss)).backward()


def _add_micro_batches(context: StepContext, micro_batches: list[dict[str, Tensor]], alone: bool) -> MethodOutput:
    """Mean of the micro-batches' losses. Only the last backward pass talks to the other processes, or none if `alone`."""
    network, outputs = context.network, []
    for number, micro_batch in enumerate(micro_batches, start=1):
        quiet = isinstance(network, DistributedDataParallel) and (alone or number < len(micro_batches))
        with network.no_sync() if quiet else nullcontext():
            micro_batch = _choose_paths(context, micro_batch)
            with span("forward"), autocast(context.device):
                output = network(micro_batch)
            _backward(context, output.loss / len(micro_batches))
        outputs.append(output._replace(loss=output.loss.detach(), preview=output.preview if number == 1 else {}))
    loss = torch.stack([o.loss for o in outputs]).mean()
    terms = mean_of_micro_batches([o.terms for o in outputs])
    return MethodOutput(loss, terms, outputs[0].preview, mean_of_micro_batches([o.statistics for o in outputs]))


def mean_of_micro_batches(micro_batches: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Means of named tensors, in memory of their own: what compiled code returned may be gone with the next step."""
    return {
        name: torch.stack([micro_batch[name].float() for micro_batch in micro_batches]).mean(dim=0)
        for name in micro_batches[0]
    }


def _compare_micro_batches(
    context: StepContext,
    inputs: dict[str, Tensor],
    micro_batches: list[dict[str, Tensor]],
    images: int,
    seed: int,
    meet: Meeting | None = None,
) -> MethodOutput:
    """Loss of the whole batch, whose gradients reach the network through those of the encodings, one by one."""
    method, train = context.method, torch.is_grad_enabled()
    with span("forward"), torch.set_grad_enabled(train and len(micro_batches) == 1), autocast(context.device):
        first = [_encode(context, micro_batch) for micro_batch in micro_batches]
    encoded = {k: v.detach().requires_grad_(train) for k, v in merge_encoded(first, images).items()}
    with nullcontext() if meet is None else meet():
        with span("forward"), autocast(context.device):
            output = context.compare(encoded, inputs)
        if not train:
            return output
        _backward(context, output.loss)
    gradients = {k: v.grad for k, v in encoded.items() if v.grad is not None}
    torch.manual_seed(seed)  # the same dropout as in the first pass
    for micro_batch, gradient in zip(
        micro_batches, split_inputs(gradients, images, len(micro_batches), ()), strict=True
    ):
        with span("forward"), autocast(context.device):
            again = first[0] if len(micro_batches) == 1 else _encode(context, micro_batch)
        with span("backward"):
            torch.autograd.backward([again[k] for k in gradient], list(gradient.values()))
    if meet is None and isinstance(context.network, DistributedDataParallel):
        average_gradients(method)
    return output._replace(loss=output.loss.detach())


def _encode(context: StepContext, micro_batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return context.encode(_choose_paths(context, micro_batch))


def average_gradients(module: nn.Module) -> None:
    """Replace every gradient by its mean over all processes, as DDP does in the backward passes that go through it."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def optimiser_step(context: StepContext, loss: Tensor | None = None) -> Tensor:
    """Clip the gradients by their total L2 norm and move the weights; returns whether they moved, bool on the device.

    Where the gradients or the loss are not finite, weights and optimiser stay as they are. No GPU is asked for that.
    """
    scaler, optimizer = context.grad_scaler, context.optimizer
    with span("optimiser"):
        if scaler is not None:
            scaler.unscale_(optimizer)
        fine = clip_gradients(context.network, context.recipe.max_norm).isfinite()
        if loss is not None:
            fine = fine & loss.isfinite()
        if scaler is None:
            step_where(optimizer, fine)
        else:
            scaler.step(optimizer)
            scaler.update()
    return fine
