"""Activation checkpointing: the blocks of a network forget what they computed, and compute it again in the backward pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016, https://arxiv.org/abs/1604.06174). All modules stay what
and where they are; only the `forward` of some is replaced, so names of weights, hooks and checks of types see no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.patch_encode_decode import PatchDecode
from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.building_blocks.unet_residual_decoder import UNetResDecoder
from timm.models.eva import EvaBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BLOCKS = (BasicBlockD, BottleneckD, StackedConvBlocks, EvaBlock)
DECODERS = (UNetDecoder, UNetResDecoder)
Context = Callable[[], AbstractContextManager[object]]


def recompute(module: nn.Module, context: Context = nullcontext) -> None:
    """From now on, the blocks of all networks in `module` keep nothing but their inputs for the backward pass.

    U-Nets: stem, every residual block (every stage of a plain encoder), every stage of the decoder together with its
    upsampling. Primus and other Eva transformers: every block, and every stage of the patch decoder.

    context: asked before a block runs for what to enter, maybe more than once, when it is computed again. Stochastic depth
    needs none: its keys change only after the backward pass of the images they belong to.
    """
    for part in list(_parts(module, set())):
        if isinstance(part, DECODERS):
            part.forward = partial(_decode, part, context)
        else:
            part.forward = partial(_forgetful, part.forward, context)


def _parts(module: nn.Module, seen: set[nn.Module]) -> Iterator[nn.Module]:
    """The outermost modules to recompute, each once: a U-Net's decoder holds the encoder as well."""
    if module in seen:
        return
    seen.add(module)
    if isinstance(module, BLOCKS) or type(module) in DECODERS:
        yield module
    elif isinstance(module, PatchDecode):
        yield from (stage for stage in module.decode if isinstance(stage, nn.Sequential))  # the last one is the output
    else:
        for child in module.children():
            yield from _parts(child, seen)


def _forgetful(forward: Callable[..., Any], context: Context, *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    if torch.compiler.is_compiling():
        # What is computed again is derived from the compiled graph, which needs no context.
        return checkpoint(forward, *inputs, use_reentrant=False, **options)
    again = context()
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), again), **options)


def _up(upsample: nn.Module, stage: nn.Module, below: Tensor, skip: Tensor) -> Tensor:
    return stage(torch.cat([upsample(below), skip], dim=1))


def _decode(decoder: Any, context: Context, skips: Sequence[Tensor]) -> Tensor:
    """nnU-Net's decoder without deep supervision; forgets the concatenated maps too, which are the largest of all."""
    x = skips[-1]
    for upsample, stage, skip in zip(decoder.transpconvs, decoder.stages, reversed(skips[:-1]), strict=True):
        x = _forgetful(partial(_up, upsample, stage), context, x, skip)
    return decoder.seg_layers[-1](x)
