"""Random block masks. Everywhere in this package a mask is True where a voxel or token is hidden."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def block_grid(size: Sequence[int], block: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks that tile `size` voxels: (block size clipped to the patch, number of blocks) per axis.

    A block wider than an axis becomes as wide as the axis (thin, anisotropic and 2D patches). An axis that is not a
    multiple of its block ends in a smaller block, so every voxel belongs to exactly one block.
    """
    per_axis = (block,) * len(size) if isinstance(block, int) else tuple(block)
    if len(per_axis) != len(size):
        raise ValueError(f"Mask block {per_axis} has {len(per_axis)} axes, the patch {tuple(size)} has {len(size)}.")
    clipped = tuple(min(b, s) for b, s in zip(per_axis, size, strict=True))
    return clipped, tuple(-(-s // b) for b, s in zip(clipped, size, strict=True))


def hidden_count(num_blocks: int, ratio: float) -> int:
    """Number of hidden blocks: `floor(ratio * num_blocks)`, at least one hidden and one visible."""
    if num_blocks < 2:
        raise ValueError(
            "The mask has a single block, so nothing can be hidden and still be guessed from the rest. "
            "Use a larger patch or a smaller mask block."
        )
    return min(max(int(ratio * num_blocks), 1), num_blocks - 1)


def random_hidden(batch: int, num_blocks: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Independent random masks [batch, num_blocks] of bool, each with exactly `hidden_count` True entries."""
    order = torch.rand(batch, num_blocks, generator=generator, device=generator.device).argsort(dim=1)
    hidden = torch.zeros(batch, num_blocks, dtype=torch.bool, device=generator.device)
    return hidden.scatter_(1, order[:, : hidden_count(num_blocks, ratio)], True)


def upsample_mask(mask: Tensor, block: Sequence[int], size: Sequence[int]) -> Tensor:
    """Voxel mask [B, 1, *size] of a block mask [B, *grid]: every block covers `block` voxels, the last one the rest."""
    for axis, width in enumerate(block, start=1):
        mask = mask.repeat_interleave(width, dim=axis)
    inside = (slice(None), *(slice(s) for s in size))
    return mask[inside].unsqueeze(1)


def random_block_mask(
    batch: int, size: Sequence[int], block: int | Sequence[int], ratio: float, generator: torch.Generator
) -> Tensor:
    """Random voxel masks [batch, 1, *size] that hide whole blocks; made on the generator's device."""
    clipped, grid = block_grid(size, block)
    num_blocks = 1
    for n in grid:
        num_blocks *= n
    hidden = random_hidden(batch, num_blocks, ratio, generator).view(batch, *grid)
    return upsample_mask(hidden, clipped, size)
