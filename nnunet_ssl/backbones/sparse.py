"""Sparse encoding: a dense U-Net encoder that treats hidden positions as if they did not exist.

Tian et al., "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling" (ICLR 2023,
https://arxiv.org/abs/2301.03580), emulated on dense tensors. No module of the network is replaced: for the
time of one pass its own convolutions and norms compute differently, so weights and their names stay nnU-Net's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.regularization import SqueezeExcite
from torch import Tensor, nn

from nnunet_ssl.errors import BackboneError
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


class SparseEncoder:
    """nnU-Net's encoder, whose convolutions give zero where hidden and whose norms ignore it, as long as anything is hidden.

    The layers' own `forward` is replaced for good and asks what is hidden: unlike hooks that come and go, this is seen by
    torch.compile. While nothing is hidden the encoder is what it was. Average and maximum pooling need no counterpart: the
    mask lies on the coarsest grid, so no window of a stride holds visible and hidden positions at once.

    Raises BackboneError for encoders with layers whose sparse counterpart is not known.
    """

    def __init__(self, encoder: Any) -> None:
        check_sparse(encoder)
        self.encoder = encoder
        self.hidden: HiddenPositions | None = None
        for module in encoder.modules():
            if isinstance(module, CONVOLUTIONS):
                module.forward = partial(self._convolve, module.forward)  # type: ignore[method-assign]
            elif isinstance(module, NORMS):
                module.forward = partial(self._normalise, module, module.forward)  # type: ignore[method-assign]

    def __call__(self, x: Tensor, hidden: HiddenPositions) -> list[Tensor]:
        """Feature maps [B, C_i, *spatial_i], zero where hidden, of an image [B, C, *spatial] that is zero there as well."""
        size: tuple[int, ...] = tuple(x.shape[2:])
        for stride in self.encoder.strides:  # all masks now: blocks that are compiled and recomputed cannot keep any
            size = tuple(s // d for s, d in zip(size, stride, strict=True))
            hidden.at(size)
        with self.hiding(hidden):
            return self.encoder(x)

    def hiding(self, hidden: HiddenPositions | None) -> Hiding:
        """For the time of the context, `hidden` is hidden from the encoder's layers; it can be entered again and again."""
        return Hiding(self, hidden)

    def _convolve(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        output = forward(x)
        if self.hidden is None:
            return output
        mask = self.hidden.at(output.shape[2:])[0]
        # In place: a convolution's gradient does not ask for its output. A compiler decides that for itself, and its output may
        # be a view that cannot be changed in place (`channels_last`).
        return output.masked_fill(mask, 0) if torch.compiler.is_compiling() else output.masked_fill_(mask, 0)

    def _normalise(self, norm: Any, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.hidden is None:
            return forward(x)
        return visible_instance_norm(x, self.hidden, norm.weight, norm.bias, norm.eps)


class Hiding:
    """Context in which an encoder's layers see that something is hidden."""

    def __init__(self, encoder: SparseEncoder, hidden: HiddenPositions | None) -> None:
        self.encoder, self.hidden = encoder, hidden

    def __enter__(self) -> None:
        self.before, self.encoder.hidden = self.encoder.hidden, self.hidden

    def __exit__(self, *_: object) -> None:
        self.encoder.hidden = self.before
