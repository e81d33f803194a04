"""Instance norms that keep the layout of their input and whose output may be changed in place.

torch's `instance_norm` computes a batch norm of one long image and returns a view of it. That costs twice in nnU-Net's
networks: the in-place LeakyReLU behind it then changes a view, which sends the backward pass through a copy of every feature
map (a third of its memory traffic, on CPUs and GPUs), and an input in channels_last is rewritten and its output handed on
contiguous, so that the next convolution has to turn it back (https://github.com/pytorch/pytorch/issues/59168).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def _for_compilers(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, unseen: Tensor | None = None
) -> Tensor:
    """Instance norm of [B, C, *spatial] from sums over the spatial axes, of which a compiler makes two kernels each way.

    Statistics are float32 whatever the input's precision. Weight and bias are spread over the images, so that their gradients
    are sums over the spatial axes as well, which the same kernel makes.
    """
    axes, each = tuple(range(2, x.ndim)), (len(x), x.shape[1], *(1,) * (x.ndim - 2))
    variance, mean = torch.var_mean(x.float(), axes, correction=0, keepdim=True)
    normal = (x.float() - mean) * (variance + eps).rsqrt()
    if weight is not None and bias is not None:
        shift = bias if unseen is None else bias + (unseen - unseen)  # a gradient of exactly zero
        normal = normal * weight.view(1, *each[1:]).expand(each) + shift.view(1, *each[1:]).expand(each)
    return normal.to(x.dtype)


def instance_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, unseen: Tensor | None = None
) -> Tensor:
    """Instance norm of [B, C, *spatial], whose result is no view.

    unseen: what was left out of x because the norm takes it away again, see `channels_last`; its gradient is zero.
    """
    if torch.compiler.is_compiling():
        return _for_compilers(x, weight, bias, eps, unseen)
    number = len(x)
    # What F.instance_norm does, but for the view at its end.
    repeated = [None if p is None else p.repeat(number) for p in (weight, bias)]
    long = x.reshape(1, -1, *x.shape[2:])
    normal = torch.batch_norm(long, *repeated, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)  # type: ignore[call-arg, arg-type]
    return torch.ops.aten._unsafe_view(normal, x.shape)


class _KeepsLayout:
    """Forward pass of the classes below."""

    unseen: tuple[Tensor, ...] = ()  # the bias that the convolution before it leaves out where it is compiled

    def forward(self: Any, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if x.ndim == self._get_no_batch_dim() or x[0, 0].numel() < 2:
            return super().forward(x)  # type: ignore[misc]  # which knows what to say
        return instance_norm(x, self.weight, self.bias, self.eps, *self.unseen)


class InstanceNorm2d(_KeepsLayout, nn.InstanceNorm2d):
    """torch's, see the module."""


class InstanceNorm3d(_KeepsLayout, nn.InstanceNorm3d):
    """torch's, see the module."""


OURS: dict[type[nn.Module], type[nn.Module]] = {nn.InstanceNorm2d: InstanceNorm2d, nn.InstanceNorm3d: InstanceNorm3d}


def keep_layout(module: nn.Module) -> None:
    """Give every instance norm in `module` the forward pass of this file; weights, names and results stay."""
    for norm in module.modules():
        own = OURS.get(type(norm))
        if own is not None and not norm.track_running_stats:
            norm.__class__ = own
