"""Convolutions and transposed convolutions whose stride is their kernel, as one matrix product.

Every voxel enters, or comes from, exactly one position of the coarser grid: cutting the image into blocks and multiplying them
is the same. On CPUs with AMX, torch 2.14's convolution of this kind reads uninitialised memory in bfloat16 wherever the last
axis of the image is a single block: NaN, now and then. On GPUs the product needs no other layout than transformers have, and
torch's compiler none of the guesses about layouts that fail in a chain of transposed convolutions
(https://github.com/pytorch/pytorch/issues/171622).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

from dynamic_network_architectures.building_blocks.patch_encode_decode import LayerNormNd, PatchDecode
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)


def is_blockwise(module: nn.Module) -> bool:
    """Whether a (transposed) convolution is of this kind, through one matrix for all blocks."""
    return (
        isinstance(module, CONVOLUTIONS + TRANSPOSED)
        and module.stride == module.kernel_size
        and max(module.kernel_size) > 1
        and module.groups == 1
        and module.padding in ("valid", (0,) * len(module.kernel_size))
        and set(module.output_padding) == {0}
        and set(module.dilation) == {1}
    )


def embed_blocks(conv: Any, x: Tensor) -> Tensor:
    """Tokens [B, N, C_out] of an image [B, C_in, *spatial], in C order; what is left over at the ends of the axes is not seen."""
    kernel = conv.kernel_size
    grid = tuple(s // k for s, k in zip(x.shape[2:], kernel, strict=True))
    for axis, (cells, width) in enumerate(zip(grid, kernel, strict=True), start=2):
        if x.shape[axis] != cells * width:
            x = x.narrow(axis, 0, cells * width)
    axes = len(kernel)
    blocks = x.reshape(*x.shape[:2], *(n for pair in zip(grid, kernel, strict=True) for n in pair))
    blocks = blocks.permute(0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))  # B, grid, C_in, kernel
    return F.linear(blocks.reshape(len(x), -1, conv.weight[0].numel()), conv.weight.flatten(1), conv.bias)


def split_tokens(conv: Any, tokens: Tensor) -> Tensor:
    """Tokens [..., prod(kernel), C_out] that a transposed convolution makes of each token [..., C_in]; the kernel in C order."""
    axes = len(conv.kernel_size)
    weight = conv.weight.permute(*range(2, 2 + axes), 1, 0).flatten(0, -2)  # [kernel * C_out, C_in]
    made = F.linear(tokens, weight).unflatten(-1, (-1, conv.out_channels))
    return made if conv.bias is None else made + conv.bias.to(made.dtype)


def assemble(tokens: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
    """Image [B, C, *spatial], in channels_last, of tokens [B, N, C] that are numbered block by block.

    sizes: blocks per axis of the coarsest grid, then of the blocks within each of these, and so on; all in C order.
    """
    axes, levels = len(sizes[0]), len(sizes)
    nested = tokens.unflatten(1, [n for level in sizes for n in level])
    order = [1 + axis + level * axes for axis in range(axes) for level in range(levels)]
    spatial = [prod([level[axis] for level in sizes]) for axis in range(axes)]  # no generator: dynamo passes none on
    image = nested.permute(0, *order, 1 + axes * levels).reshape(len(tokens), *spatial, tokens.shape[-1])
    return image.permute(0, -1, *range(1, 1 + axes))


def transpose_by_product(conv: Any, x: Tensor) -> Tensor:
    """What a transposed convolution of this kind makes of [B, C_in, *grid]."""
    tokens = split_tokens(conv, x.flatten(2).transpose(1, 2))
    return assemble(tokens.flatten(1, 2), (x.shape[2:], conv.kernel_size))


def _as_convolution(conv: Any, x: Tensor) -> Tensor:
    """Feature map [B, C_out, *grid] as the convolution gives it."""
    grid = tuple(s // k for s, k in zip(x.shape[2:], conv.kernel_size, strict=True))
    return embed_blocks(conv, x).transpose(1, 2).unflatten(2, grid)


def _decodes_blocks(decoder: PatchDecode) -> bool:
    """Whether all stages are transposed convolutions of this kind, all but the last with norm over channels and activation."""
    *stages, last = decoder.decode
    parts = [tuple(stage) for stage in stages if isinstance(stage, nn.Sequential) and len(stage) == 3]
    return (
        len(parts) == len(stages)
        and all(is_blockwise(conv) and isinstance(norm, LayerNormNd) for conv, norm, _ in parts)
        and is_blockwise(last)
    )


def _decode_stage(stage: Any, tokens: Tensor) -> Tensor:
    """A stage of the patch decoder on tokens [B, N, C_in]: [B, N * prod(kernel), C_out]."""
    conv, norm, activation = stage
    tokens = split_tokens(conv, tokens).flatten(1, 2)
    return activation(F.layer_norm(tokens, norm.weight.shape, norm.weight, norm.bias, norm.eps))


def _decode_blocks(decoder: Any, x: Tensor) -> Tensor:
    """Primus' patch decoder on a map [B, C, *grid]; tokens stay tokens until they are voxels."""
    tokens, sizes = x.flatten(2).transpose(1, 2), [tuple(x.shape[2:])]
    *stages, last = decoder.decode
    for stage in stages:
        tokens = stage(tokens)  # its `forward`, which is what `recompute` computes again
        sizes.append(stage[0].kernel_size)
    return assemble(split_tokens(last, tokens).flatten(1, 2), [*sizes, last.kernel_size])


def compute_by_product(module: nn.Module) -> None:
    """From now on, patch embeddings and decoders in `module` are matrix products; modules and weights stay what they are.

    What has a forward pass of its own by now, as the layers of a sparse encoder, keeps it.
    """
    for part in module.modules():
        if "forward" in part.__dict__:
            continue
        if isinstance(part, CONVOLUTIONS) and is_blockwise(part):
            part.forward = partial(_as_convolution, part)  # type: ignore[method-assign]
        elif isinstance(part, PatchDecode) and _decodes_blocks(part):
            for stage in part.decode[:-1]:
                stage.forward = partial(_decode_stage, stage)
            part.forward = partial(_decode_blocks, part)
