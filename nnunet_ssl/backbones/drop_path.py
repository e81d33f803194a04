"""Stochastic depth whose dropped paths belong to the images, not to the process or the part of a batch they are in.

What is dropped is known on the host, so that transformer blocks compute nothing for it: with Primus' rates a tenth of the
network (the idea is DINOv2's, Oquab et al., 2023, https://arxiv.org/abs/2304.07193, section 5; here every image decides for
itself, as in a network that computes everything and multiplies by zero, and the result is the same). Compiled code, whose
shapes have to stay, does that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.regularization import DropPath as ResidualDropPath
from timm.layers import DropPath
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from nnunet_ssl.views import rng
from nnunet_ssl.views.host import to_device

_compute_dropped = False


@contextmanager
def computing_what_is_dropped() -> Iterator[None]:
    """For the time of the context, blocks compute everything and multiply by zero, as compiled code does."""
    global _compute_dropped
    before, _compute_dropped = _compute_dropped, True
    try:
        yield
    finally:
        _compute_dropped = before


class ImageDropPath(DropPath):
    """timm's DropPath, drawn from `keys`, one per image [B] (see `nnunet_ssl.views.rng`), while there are any.

    What it is given holds the images, or V views of each, in the order of `Method.prepare`.
    """

    keys: Tensor | None = None  # on the host
    device_keys: Tensor | None = None  # the same beside the network

    def __init__(self, original: DropPath | ResidualDropPath, number: int) -> None:
        super().__init__(original.drop_prob, original.scale_by_keep)
        self.number = number

    @property
    def scale(self) -> float:
        """Factor on what is kept."""
        return 1 / (1 - self.drop_prob) if self.scale_by_keep else 1.0

    def kept(self, rows: int) -> list[int] | None:
        """Rows of a batch that are not dropped, None where this is not for the keys to say."""
        if self.keys is None or not self.training or self.drop_prob == 0:
            return None
        gone = rng.dropped(self.keys, rows, self.drop_prob, self.number).tolist()
        return [row for row in range(rows) if not gone[row]]

    def forward(self, x: Tensor) -> Tensor:
        if self.device_keys is None or not self.training or self.drop_prob == 0:
            return super().forward(x)
        kept = ~rng.dropped(self.device_keys, len(x), self.drop_prob, self.number)
        return x * (kept.to(x.dtype) * self.scale).view(-1, *(1,) * (x.ndim - 1))


class ImageEvaBlock(EvaBlock):
    """timm's transformer block, computed only for the images whose path is not dropped."""

    def forward(self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        if torch.compiler.is_compiling() or _compute_dropped or attn_mask is not None:
            return super().forward(x, rope, attn_mask)
        x = _add(x, rope, self.drop_path1, lambda y, angles: self.attn(self.norm1(y), rope=angles), self.gamma_1)
        return _add(x, None, self.drop_path2, lambda y, _: self.mlp(self.norm2(y)), self.gamma_2)


def _add(
    x: Tensor, rope: Tensor | None, path: nn.Module, branch: Callable[..., Tensor], gamma: Tensor | None
) -> Tensor:
    """Tokens [B, N, C] and what a branch of the block makes of those images that it is computed for."""

    def scaled(y: Tensor, angles: Tensor | None) -> Tensor:
        return branch(y, angles) if gamma is None else gamma * branch(y, angles)

    kept = path.kept(len(x)) if isinstance(path, ImageDropPath) else None
    if kept is None:
        return x + path(scaled(x, rope))
    scale: float = path.scale  # type: ignore[assignment]  # an ImageDropPath
    if len(kept) == len(x):
        return x + scaled(x, rope) * scale
    if not kept:  # every weight needs a gradient, or DDP would wait for it
        kept, scale = [0], 0.0
    rows = to_device(kept, x.device)
    angles = (
        rope.index_select(0, rows) if rope is not None and rope.ndim == 4 else rope
    )  # of tokens that differ by image
    added = scaled(x.index_select(0, rows), angles) * scale
    return x.index_add(0, rows, added.to(x.dtype))


def drop_by_image(module: nn.Module) -> list[ImageDropPath]:
    """Replace every DropPath in `module` by one that goes by image, and return them; transformer blocks skip what they drop.

    Those of timm, as Primus has them, and those of nnU-Net's residual blocks.
    """
    found = [n for n, m in module.named_modules() if isinstance(m, (DropPath, ResidualDropPath))]
    replaced = []
    for number, name in enumerate(found):
        parent, _, attribute = name.rpartition(".")
        replaced.append(ImageDropPath(module.get_submodule(name), number))
        setattr(module.get_submodule(parent), attribute, replaced[-1])
    for block in module.modules():
        if type(block) is EvaBlock:
            block.__class__ = ImageEvaBlock
    return replaced


def set_drop_path(module: nn.Module, rate: float) -> None:
    """Have the stochastic depth of transformer blocks rise evenly from 0 in the first to `rate` in the last.

    Whatever it was before; blocks built without any keep none where `rate` is 0, and get theirs otherwise.
    """
    blocks = [block for block in module.modules() if isinstance(block, EvaBlock)]
    for block, own in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        block.drop_path1 = DropPath(own) if own else nn.Identity()
        block.drop_path2 = DropPath(own) if own else nn.Identity()


def use_keys(paths: list[ImageDropPath], keys: Tensor | None, device: torch.device | None = None) -> None:
    """From now on the paths belong to the images with these keys [B], a tensor of the host; device: the network's.

    None: drawn from torch's global generator.
    """
    beside: Any = None if keys is None else keys if device is None else to_device(keys.numpy(), device)
    for path in paths:
        path.keys, path.device_keys = keys, beside
