"""nnU-Net's U-Nets in the layout that a GPU's convolutions want, as torch's compiler is to see them.

In channels_last the same convolutions run 1.3 to 1.5 times as fast and nothing has to be turned round before and after them.
Only when everything keeps it: so pooling, upsampling and output layers, which give the layout up, are written as what they are,
sums and products. A bias in front of an instance norm changes nothing: it is neither added nor does the compiler sum up a
gradient that is zero. And, where asked for (`unmeasured`): a convolution of few channels does not fill a GPU's matrix units;
pairs of neighbouring voxels taken as one with twice the channels do, although a quarter of the numbers multiplied is then zero.

Not compiled, all modules do what they did. Weights, names and results stay, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_ssl.backbones.blockwise import CONVOLUTIONS, TRANSPOSED, is_blockwise, transpose_by_product
from nnunet_ssl.backbones.norms import OURS
from nnunet_ssl.backbones.unmeasured import wanted

POOLS = (nn.AvgPool2d, nn.AvgPool3d)
NARROW = 32  # channels up to which convolutions do not fill the matrix units
FEW = 8  # channels up to which an output layer is a sum


def use_channels_last(network: nn.Module) -> None:
    """Bring a U-Net into channels_last, and keep it there where it is compiled."""
    for module in network.modules():
        if isinstance(module, TRANSPOSED) and is_blockwise(module):
            _replace(module, transpose_by_product)
        elif isinstance(module, POOLS) and _tiles(module):
            _replace(module, _average_blocks)
        elif isinstance(module, CONVOLUTIONS) and module.groups == 1:
            if _takes_pairs(module):
                _replace(module, convolve_pairs)
            elif set(module.kernel_size) == {1} and set(module.stride) == {1} and module.out_channels <= FEW:
                _replace(module, _project)
    for parameter in network.parameters():
        parameter.data = to_channels_last(parameter.data)


def to_channels_last(x: Tensor) -> Tensor:
    """A tensor of four or five axes in its channels_last layout; others as they are."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    return x if layout is None else x.to(memory_format=layout)


def leave_biases_out(module: nn.Module) -> None:
    """Compiled, convolutions followed by an instance norm of ours do without their bias, whose gradient is then exactly zero.

    To be called when nobody replaces the forward pass of norms any more; norms that were replaced keep their biases.
    """
    for block in module.modules():
        if not isinstance(block, ConvDropoutNormReLU) or getattr(block, "dropout", None) is not None:
            continue
        conv: Any = block.conv
        norm: Any = getattr(block, "norm", None)
        if type(norm) in OURS.values() and "forward" not in norm.__dict__ and conv.bias is not None:
            conv.leaves_bias_to_norm = True
            if not _takes_pairs(conv):
                _replace(conv, _convolve_without_bias)
            norm.unseen = (conv.bias,)  # in a tuple, or it would be registered twice


def _replace(module: nn.Module, compiled: Callable[[Any, Tensor], Tensor]) -> None:
    module.forward = partial(_choose, module, module.forward, compiled)


def _choose(
    module: Any, plain: Callable[[Tensor], Tensor], compiled: Callable[[Any, Tensor], Tensor], x: Tensor
) -> Tensor:
    return compiled(module, x) if torch.compiler.is_compiling() else plain(x)


def _convolve_without_bias(conv: Any, x: Tensor) -> Tensor:
    return conv._conv_forward(x, conv.weight, None)


def _tiles(pool: Any) -> bool:
    return pool.stride == pool.kernel_size and not pool.ceil_mode and pool.padding in (0, (0,) * 3, [0] * 3)


def _average_blocks(pool: Any, x: Tensor) -> Tensor:
    """Average pooling whose stride is its kernel."""
    axes = x.ndim - 2
    kernel = (pool.kernel_size,) * axes if isinstance(pool.kernel_size, int) else tuple(pool.kernel_size)
    for axis, width in enumerate(kernel, start=2):
        x = x.narrow(axis, 0, x.shape[axis] // width * width)
    cells = [n for size, width in zip(x.shape[2:], kernel, strict=True) for n in (size // width, width)]
    blocks = x.permute(0, *range(2, x.ndim), 1).unflatten(1, cells[:2])  # channels last, as they lie
    for axis in range(1, axes):
        blocks = blocks.unflatten(1 + 2 * axis, cells[2 * axis : 2 * axis + 2])
    means = blocks.float().mean(tuple(range(2, 2 + 2 * axes, 2))).to(x.dtype)
    return means.permute(0, -1, *range(1, 1 + axes))


def _project(conv: Any, x: Tensor) -> Tensor:
    """A convolution of one voxel into few channels, as a sum over channels in float32."""
    voxel = (1, -1, *(1,) * (x.ndim - 2))
    out = torch.stack([(x.float() * row.view(voxel)).sum(1) for row in conv.weight.flatten(1)], 1)
    return (out if conv.bias is None else out + conv.bias.view(voxel)).to(x.dtype)


def _takes_pairs(conv: Any) -> bool:
    """Whether pairs are wanted and a convolution has a kernel of three, keeps the size, and has few output channels."""
    three = all(k == 3 for k in conv.kernel_size)
    plain = set(conv.stride) == {1} and set(conv.dilation) == {1} and set(conv.padding) == {1}
    return (
        wanted("pairs")
        and three
        and plain
        and conv.padding_mode == "zeros"
        and conv.in_channels >= 8
        and conv.out_channels <= NARROW
    )


def convolve_pairs(conv: Any, x: Tensor) -> Tensor:
    """A convolution with kernel 3 of [B, C, ..., W], computed on pairs of voxels along the last axis.

    In channels_last two neighbours are one voxel of twice the channels. Output pairs are shifted by one voxel against input
    pairs, so that each needs two of these instead of three: voxel 2q - 1 + j needs voxel 2(q - 1 + t) + i, for t, i, j in
    (0, 1), with the weight 2t + i - j, where there is such a one: six of eight.
    """
    bias = None if getattr(conv, "leaves_bias_to_norm", False) else conv.bias
    if x.shape[-1] % 2:
        return conv._conv_forward(x, conv.weight, bias)
    weight, nothing = conv.weight, torch.zeros_like(conv.weight[..., 0])
    taps = [weight[..., 0], weight[..., 1], weight[..., 2]]

    def block(t: int, i: int, j: int) -> Tensor:
        tap = 2 * t + i - j
        return taps[tap] if 0 <= tap <= 2 else nothing

    # [2 * C_out, 2 * C_in, ..., 2]: outer halves are the voxels of a pair
    pairs = torch.stack(
        [torch.cat([torch.cat([block(t, i, j) for i in (0, 1)], dim=1) for j in (0, 1)]) for t in (0, 1)], dim=-1
    )
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    doubled = None if bias is None else torch.cat([bias, bias])
    moved = x.permute(0, *range(2, x.ndim), 1)  # [B, ..., W, C], as it lies
    joined = moved.reshape(*moved.shape[:-2], x.shape[-1] // 2, 2 * x.shape[1])
    joined = joined.permute(0, -1, *range(1, joined.ndim - 1))
    out = convolve(joined, to_channels_last(pairs), doubled, padding=1)  # [B, 2 * C_out, ..., W / 2 + 1]
    out = out.permute(0, *range(2, out.ndim), 1)
    out = out.reshape(*out.shape[:-2], 2 * out.shape[-2], conv.out_channels)
    return out.narrow(-2, 1, x.shape[-1]).permute(0, -1, *range(1, out.ndim - 1))
