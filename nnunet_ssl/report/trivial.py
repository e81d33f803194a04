"""How well a pretext task can be solved without looking at the image: the line that learning has to cross."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor

from nnunet_ssl.backbones import PrimusBackbone
from nnunet_ssl.methods import Method
from nnunet_ssl.methods.nt_xent import nt_xent
from nnunet_ssl.methods.reconstruction import masked_error, patch_statistics
from nnunet_ssl.methods.segmentation_loss import segmentation_loss
from nnunet_ssl.views.crops import mostly_usable
from nnunet_ssl.views.fusion import random_levels

SIMILARITIES = 101  # values tried between 0 and 1
DRAWS, CHUNK = 256, 16  # of fusion levels, to learn how often each place has which


@torch.no_grad()
def trivial_loss(method: Method, inputs: Mapping[str, Tensor]) -> float:
    """Loss of the best answer that does not depend on the image, for inputs that `method.prepare` made.

    mae, simmim, spark3d: one grey value for all voxels of the batch that count, their mean (L1: their median).
    models_genesis: the same, or handing back the corrupted image, whichever is better. volume_fusion: probabilities
    of the levels that depend on the place alone, the best ones there are for cross entropy and Dice together. simclr: all
    embeddings equal, which is the logarithm of the number of candidates. voco: all crops equally similar, at the best
    such similarity. swin_unetr: log 4 for the turn, equal embeddings, the median grey value. consistent_views: the mean
    grey value, and equal embeddings, which agree perfectly (alignment 0) and tell no images apart.

    Raises ValueError for methods of other packages, whose trivial solution nobody here knows.
    """
    if method.name not in SOLUTIONS:
        raise ValueError(
            f"No trivial solution of {method.name!r} is known here. Known: {', '.join(sorted(SOLUTIONS))}."
        )
    return float(SOLUTIONS[method.name](method, inputs))


def _constant_error(target: Tensor, counted: Tensor, loss: str) -> Tensor:
    """Error of the one grey value that fits the counted voxels best."""
    values = target[counted.expand_as(target)]
    if values.numel() == 0:
        return target.new_zeros(())
    return masked_error((values.median() if loss == "l1" else values.mean()).expand_as(target), target, counted, loss)


def _painting(method: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    config, target, excluded = method.config, inputs["image"], inputs["excluded"]
    if config.normalise_target:
        tokens = isinstance(method.backbone, PrimusBackbone)
        block = getattr(method, "mask_block", None) or (method.backbone.stride if tokens else config.mask_block)
        mean, deviation = patch_statistics(target, excluded, block)
        target = (target - mean) / deviation
    counted = ~excluded if config.loss_on == "everywhere" else inputs["hidden"] & ~excluded
    return _constant_error(target, counted, config.loss)


def _restoration(method: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    image, counted, loss = inputs["image"], ~inputs["excluded"], method.config.loss
    copied = masked_error(inputs["corrupted"], image, counted, loss)
    return torch.minimum(_constant_error(image, counted, loss), copied)


def _level_frequencies(method: Any, size: Sequence[int], device: torch.device) -> Tensor:
    """How often each voxel has each level [K, *size]: boxes rarely reach the border, so places differ."""
    config, generator = method.config, torch.Generator(device).manual_seed(0)
    classes = torch.arange(config.levels, device=device).view(1, -1, *(1,) * len(size))
    number = torch.ones(config.levels, *size, device=device)
    for _ in range(DRAWS // CHUNK):
        drawn = random_levels(CHUNK, size, config.levels, config.boxes, config.min_box, config.max_box, generator)
        number += (drawn == classes).sum(dim=0)
    return number / number.sum(dim=0)


def _levels(method: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    level, counted, config = inputs["level"], ~inputs["excluded"], method.config
    places = _level_frequencies(method, level.shape[2:], level.device).log()
    scale = torch.ones(1, device=level.device, requires_grad=True)
    offset = torch.zeros(config.levels, *(1,) * (level.ndim - 2), device=level.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, offset], max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        logits = (scale * places + offset).expand(len(level), -1, *level.shape[2:])
        cross_entropy, dice = segmentation_loss(logits, level, counted)
        return config.ce_weight * cross_entropy - config.dice_weight * dice

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    return loss()


def _equal_embeddings(pairs: int, images: Tensor, usable: Tensor, temperature: float) -> Tensor:
    """NT-Xent of embeddings that are all the same."""
    same = torch.ones(pairs, 1, device=usable.device)
    return nt_xent(same, same, images, usable, temperature, together=False).loss


def _pairs(method: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    first, second = inputs["usable"].chunk(2)
    images = torch.arange(len(inputs["region"]), device=first.device).repeat(method.config.pairs_per_image)
    return _equal_embeddings(len(first), images, first & second, method.config.temperature)


def _overlaps(method: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    config, overlap, bases = method.config, inputs["overlap"].unsqueeze(0), inputs["overlap"].shape[2]
    counted = inputs["usable"][:, bases:].unsqueeze(2) & inputs["usable"][:, :bases].unsqueeze(1)
    share = overlap * counted
    similarity = torch.linspace(0, 1, SIMILARITIES, device=overlap.device)
    distance = (overlap - similarity.view(-1, 1, 1, 1)).abs()
    error = -torch.log(1 - distance + 1e-6) * share
    overlapping = error.sum(dim=(1, 2, 3)) / share.sum().clamp(min=1e-8)
    apart = similarity.square() * bool((counted & (overlap == 0)).any())
    return (
        config.overlap_weight * overlapping
        + config.apart_weight * apart
        + config.regularisation_weight * similarity * (bases > 1)
    ).min()


def _three_tasks(method: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    config, turned, excluded = method.config, inputs["turned"], inputs["excluded"]
    number = len(turned) // 2
    usable = mostly_usable(excluded).chunk(2)
    images = torch.arange(number, device=turned.device)
    contrast = _equal_embeddings(number, images, usable[0] & usable[1], config.temperature)
    painted = _constant_error(turned, ~excluded, "l1")
    return config.rotation_weight * log(4) + config.contrast_weight * contrast + config.inpainting_weight * painted


def _agreement(method: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    config, number = method.config, len(inputs["image"]) // 2
    usable = mostly_usable(inputs["excluded"]).chunk(2)
    images = torch.arange(number, device=inputs["image"].device)
    contrast = _equal_embeddings(number, images, usable[0] & usable[1], config.temperature)
    return config.reconstruction_weight * _painting(method, inputs) + config.contrast_weight * contrast


SOLUTIONS: dict[str, Callable[[Any, Mapping[str, Tensor]], Tensor]] = {
    "mae": _painting,
    "simmim": _painting,
    "spark3d": _painting,
    "models_genesis": _restoration,
    "volume_fusion": _levels,
    "simclr": _pairs,
    "voco": _overlaps,
    "swin_unetr": _three_tasks,
    "consistent_views": _agreement,
}
