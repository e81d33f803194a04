"""Random masks. Everywhere in this package a mask is True where a voxel or token is hidden."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nnunet_ssl.errors import SettingsError
from nnunet_ssl.settings.bounds import Count, InnerShare, PerAxis
from nnunet_ssl.views import rng
from nnunet_ssl.views.host import to_device

# What a method's settings may say of its mask.
MaskStyle = Literal["blocks", "grid", "slices"]
MaskRatio = InnerShare | tuple[InnerShare, ...]  # share of hidden blocks, or a pair to draw it from
MaskBlock = Count | PerAxis  # voxels


def block_grid(size: Sequence[int], block: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks that tile `size` voxels: (block size clipped to the patch, number of blocks) per axis.

    A block wider than an axis becomes as wide as the axis (thin, anisotropic and 2D patches). An axis that is not a
    multiple of its block ends in a smaller block, so every voxel belongs to exactly one block.
    """
    per_axis = (block,) * len(size) if isinstance(block, int) else tuple(block)
    if len(per_axis) != len(size):
        raise SettingsError(f"Mask block {per_axis} has {len(per_axis)} axes, the patch {tuple(size)} has {len(size)}.")
    clipped = tuple(min(b, s) for b, s in zip(per_axis, size, strict=True))
    return clipped, tuple(-(-s // b) for b, s in zip(clipped, size, strict=True))


def check_ratio(ratio: float | Sequence[float]) -> None:
    """Raise ValueError for several ratios that are no pair (lowest, highest); for `__post_init__` of configs."""
    if not isinstance(ratio, (int, float)) and (len(ratio) not in (1, 2) or list(ratio) != sorted(ratio)):
        raise ValueError(f"mask_ratio is one number or a pair (lowest, highest), found {ratio}.")


def draw_ratio(ratio: float | Sequence[float], generator: torch.Generator) -> float:
    """The mask ratio of a batch: `ratio` itself, or a number drawn uniformly from a pair (lowest, highest)."""
    if isinstance(ratio, (int, float)):
        return ratio
    low, high = ratio[0], ratio[-1]
    return low + (high - low) * rng.Host(rng.whole(generator)).rand(1).item()


def aligned_block(block: int | Sequence[int] | None, unit: Sequence[int], what: str) -> tuple[int, ...]:
    """Voxels of a mask block per axis, None meaning one `unit`; raises SettingsError unless it is a multiple of it.

    `what` says in the error message what the unit is, e.g. "the network's stride".
    """
    wanted = tuple(unit) if block is None else (block,) * len(unit) if isinstance(block, int) else tuple(block)
    if len(wanted) != len(unit):
        raise SettingsError(f"mask_block {wanted} has {len(wanted)} axes, the network has {len(unit)}.")
    if any(b % u for b, u in zip(wanted, unit, strict=True)):
        fitting = tuple(-(-b // u) * u for b, u in zip(wanted, unit, strict=True))
        raise SettingsError(
            f"mask_block {wanted} is not a multiple of {what}, {tuple(unit)} voxels. "
            f'The next valid block is "mask_block": {list(fitting)}.'
        )
    return wanted


def hidden_count(num_blocks: int, ratio: float) -> int:
    """Number of hidden blocks: `floor(ratio * num_blocks)`, at least one hidden and one visible."""
    if num_blocks < 2:
        raise SettingsError(
            "The mask has a single block, so nothing can be hidden and still be guessed from the rest. "
            "Use a larger patch or a smaller mask block."
        )
    return min(max(int(ratio * num_blocks), 1), num_blocks - 1)


def random_hidden(batch: int, num_blocks: int, ratio: float, generator: torch.Generator) -> np.ndarray:
    """Independent random masks [batch, num_blocks] of bool, each with exactly `hidden_count` True entries."""
    order = rng.Host(generator).rand(batch, num_blocks).argsort(axis=1)
    hidden = np.zeros((batch, num_blocks), dtype=bool)
    np.put_along_axis(hidden, order[:, : hidden_count(num_blocks, ratio)], True, axis=1)
    return hidden


def random_blocks(
    batch: int, grid: Sequence[int], ratio: float, generator: torch.Generator, style: str = "blocks"
) -> np.ndarray:
    """Random masks [batch, *grid] of bool over a grid of blocks, every sample hiding the same number of them.

    "blocks": any blocks, independently per sample. "grid": a random 2 x 2 x 2 pattern, one per batch, repeated over the
    grid; the ratio is rounded to eighths (quarters in 2D). "slices": whole slabs across one axis, which is drawn once per
    batch among those with several blocks; the slabs are drawn per sample. Raises SettingsError for a grid of one block.
    """
    common = rng.Host(rng.whole(generator))
    if style == "grid":
        cell = tuple(min(2, n) for n in grid)
        hidden_count(prod(cell), ratio)
        number = min(max(round(ratio * prod(cell)), 1), prod(cell) - 1)
        pattern = (common.rand(1, prod(cell)).ravel().argsort() < number).reshape(cell)
        tiled = np.tile(pattern, [-(-n // c) for n, c in zip(grid, cell, strict=True)])
        return np.broadcast_to(tiled[tuple(slice(n) for n in grid)], (batch, *grid)).copy()
    if style == "slices":
        hidden_count(max(grid), ratio)
        axes = [a for a, n in enumerate(grid) if n > 1]
        axis = axes[common.randint(0, len(axes), 1).item()]
        slabs = random_hidden(batch, grid[axis], ratio, generator)
        slabs = slabs.reshape(batch, *(n if a == axis else 1 for a, n in enumerate(grid)))
        return np.broadcast_to(slabs, (batch, *grid)).copy()
    return random_hidden(batch, prod(grid), ratio, generator).reshape(batch, *grid)


def upsample_blocks(mask: np.ndarray, block: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Mask [B, *size] of a block mask [B, *grid] on the host: every block covers `block` entries, the last one the rest."""
    for axis, width in enumerate(block, start=1):
        mask = mask.repeat(width, axis=axis)
    whole = (slice(None), *(slice(s) for s in size))
    return np.ascontiguousarray(mask[whole])


def upsample_mask(mask: Tensor, block: Sequence[int], size: Sequence[int]) -> Tensor:
    """Voxel mask [B, 1, *size] of a block mask [B, *grid]: every block covers `block` voxels, the last one the rest."""
    for axis, width in enumerate(block, start=1):
        mask = mask.repeat_interleave(width, dim=axis)
    whole = (slice(None), *(slice(s) for s in size))
    return mask[whole].unsqueeze(1)


def random_block_mask(
    batch: int,
    size: Sequence[int],
    block: int | Sequence[int],
    ratio: float,
    generator: torch.Generator,
    style: str = "blocks",
) -> Tensor:
    """Random voxel masks [batch, 1, *size] that hide whole blocks; made on the generator's device."""
    clipped, grid = block_grid(size, block)
    blocks = to_device(random_blocks(batch, grid, ratio, generator, style), generator.device)
    return upsample_mask(blocks, clipped, size)
