"""Bring transformer weights trained on (A1, A0, A2) token sequences to the natural order (A0, A1, A2).

nnssl's EvaMAE family flattens the token grid with its first two axes swapped; Primus flattens it in array order since
dynamic-network-architectures 0.4.3. Loaded as they are, such weights see position embedding and rotary embedding of
the wrong axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor

from nnunet_ssl.checkpoints.description.stated import text
from nnunet_ssl.errors import CheckpointError

TOKEN_ORDERS = ("natural", "swapped")


def needs_conversion(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds weights in nnssl's swapped token order.

    `token_order` in its `ssl` block says so; without one, nnssl's Eva trainers do, except SimMIM's, and except those of
    its nnFoundation branch, whose EvaMAE flattens in array order (their architecture is called PrimusX).
    """
    ssl = checkpoint.get("ssl")
    if isinstance(ssl, Mapping) and ssl.get("token_order") in TOKEN_ORDERS:
        return bool(ssl["token_order"] == "swapped")
    trainer = str(checkpoint.get("trainer_name", ""))[:200]
    return "Eva" in trainer and "SimMIM" not in trainer and not _is_primus_x(checkpoint)


def states_token_order(checkpoint: Mapping[str, Any]) -> bool:
    """Whether the order is known: from the `ssl` block, the name of a trainer, or the architecture PrimusX."""
    ssl = checkpoint.get("ssl")
    stated = isinstance(ssl, Mapping) and ssl.get("token_order") in TOKEN_ORDERS
    return stated or bool(text(checkpoint.get("trainer_name"))) or _is_primus_x(checkpoint)


def _is_primus_x(checkpoint: Mapping[str, Any]) -> bool:
    plan = checkpoint.get("nnssl_adaptation_plan")
    architecture = plan.get("architecture_plans") if isinstance(plan, Mapping) else None
    return isinstance(architecture, Mapping) and architecture.get("arch_class_name") == "PrimusX"


def to_natural_order(state_dict: Mapping[str, Tensor], grid: Sequence[int], num_heads: int) -> dict[str, Tensor]:
    """Weights for tokens flattened as (A1, A0, A2) -> weights that do the same for tokens flattened as (A0, A1, A2).

    `grid` is the token grid (n0, n1, n2) in array order. The position embedding is transposed; in every head, the
    query and key channels that the rotary embedding turns by the first and by the second axis change places. Exact
    when the rotary table belonged to the swapped grid, which for cubic grids is always so. Raises CheckpointError when
    the shapes do not fit.
    """
    converted = dict(state_dict)
    for name, tensor in state_dict.items():
        if name.split(".")[-1] == "pos_embed":
            converted[name] = _transpose_grid(name, tensor, grid)
        elif ".attn.q_proj." in f".{name}" or ".attn.k_proj." in f".{name}":
            converted[name] = _exchange_axes_in_heads(name, tensor, num_heads)
    return converted


def to_swapped_order(state_dict: Mapping[str, Tensor], grid: Sequence[int], num_heads: int) -> dict[str, Tensor]:
    """The inverse of `to_natural_order`, for the same `grid`: exact, both only move values."""
    return to_natural_order(state_dict, (grid[1], grid[0], *grid[2:]), num_heads)


def _transpose_grid(name: str, embedding: Tensor, grid: Sequence[int]) -> Tensor:
    if len(grid) != 3 or embedding.ndim != 3 or embedding.shape[1] != prod(grid):
        raise CheckpointError(
            f"{name} has shape {tuple(embedding.shape)}, which does not fit a token grid of {tuple(grid)}. Expected "
            "[1, n0 * n1 * n2, channels]: the patch size recorded in the checkpoint is not the one it was trained with."
        )
    n0, n1, n2 = grid
    return embedding.unflatten(1, (n1, n0, n2)).transpose(1, 2).flatten(1, 3).contiguous()


def _exchange_axes_in_heads(name: str, tensor: Tensor, num_heads: int) -> Tensor:
    channels = tensor.shape[0] if tensor.ndim else 0
    if channels == 0 or num_heads < 1 or channels % (3 * num_heads):
        raise CheckpointError(
            f"{name} has {channels} output channels, which do not divide into {num_heads} heads of three axes. "
            "Expected the number of heads the checkpoint was trained with."
        )
    per_axis = tensor.unflatten(0, (num_heads, 3, -1))
    return per_axis[:, [1, 0, 2]].flatten(0, 2).contiguous()
