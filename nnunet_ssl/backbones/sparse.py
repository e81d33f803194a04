"""Sparse encoding: a dense U-Net encoder that treats hidden positions as if they did not exist.

Tian et al., "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling" (ICLR 2023,
https://arxiv.org/abs/2301.03580), emulated on dense tensors. No module of the network is replaced: for the
time of one pass its own convolutions and norms compute differently, so weights and their names stay nnU-Net's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from dynamic_network_architectures.building_blocks.regularization import SqueezeExcite
from torch import Tensor, nn

from nnunet_ssl.backbones.base import BackboneError
from nnunet_ssl.views.masks import upsample_mask

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)


class HiddenPositions:
    """Where nothing is to be seen, at every resolution of an encoder; made of the mask of the coarsest one.

    cells: bool [B, *coarsest grid], True = hidden. Each resolution's mask is made once.
    """

    def __init__(self, cells: Tensor) -> None:
        self.cells = cells
        self._masks: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def at(self, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(mask bool [B, 1, *size], number of visible positions per sample [B, 1, 1, ...]) of a resolution."""
        key = tuple(int(s) for s in size)
        if key not in self._masks:
            factors = [s // g for s, g in zip(key, self.cells.shape[1:], strict=True)]
            mask = upsample_mask(self.cells, factors, key)
            self._masks[key] = mask, (~mask).flatten(1).sum(dim=1).clamp(min=1).view(-1, *(1,) * (mask.ndim - 1))
        return self._masks[key]


def visible_instance_norm(
    x: Tensor, hidden: HiddenPositions, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Instance norm of a map [B, C, *spatial] that is zero where hidden, with the statistics of the visible positions.

    Statistics are summed up in float32 without a float32 copy of the map. Hidden positions stay zero.
    """
    mask, count = hidden.at(x.shape[2:])
    axes, broadcast = tuple(range(2, x.ndim)), (1, -1, *(1,) * (x.ndim - 2))
    mean = x.sum(axes, keepdim=True, dtype=torch.float32) / count
    squares = torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=torch.float32).square() / count
    scale = ((squares - mean.square()).clamp(min=0) + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.view(broadcast)
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias.view(broadcast)
    return (x * scale + shift).masked_fill(mask, 0).to(x.dtype)


def check_sparse(encoder: nn.Module) -> None:
    """Raise BackboneError when the encoder holds layers whose sparse counterpart is not known."""
    for name, module in encoder.named_modules():
        own = any(True for _ in module.parameters(recurse=False))
        running = isinstance(module, NORMS) and module.track_running_stats
        if (own and not isinstance(module, CONVOLUTIONS + NORMS)) or running or isinstance(module, SqueezeExcite):
            raise BackboneError(
                f"Sparse encoding knows convolutions and instance norms, but encoder.{name} is a {type(module).__name__}"
                f"{' with running statistics' if running else ''}. Use mae or simmim, or plans with nnU-Net's own U-Nets."
            )


@contextmanager
def sparse_encoding(encoder: nn.Module, hidden: HiddenPositions) -> Iterator[None]:
    """For the time of the context, the encoder's convolutions give zero where hidden and its norms ignore it.

    Average and maximum pooling need no counterpart: the mask lies on the coarsest grid, so no window of a stride holds
    visible and hidden positions at once. The encoder's input must be zero where hidden.
    """
    hooks, norms = [], []

    def forget(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # In place: a convolution's gradient does not ask for its output.
        return output.masked_fill_(hidden.at(output.shape[2:])[0], 0)

    def normalise(module: nn.InstanceNorm2d | nn.InstanceNorm3d, x: Tensor) -> Tensor:
        return visible_instance_norm(x, hidden, module.weight, module.bias, module.eps)

    try:
        for module in encoder.modules():
            if isinstance(module, CONVOLUTIONS):
                hooks.append(module.register_forward_hook(forget))
            elif isinstance(module, NORMS):
                module.forward = partial(normalise, module)  # type: ignore[method-assign]
                norms.append(module)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm in norms:
            del norm.forward  # the class's own method shows again
