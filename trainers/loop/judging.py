"""Does a run learn? Its validation loss beside the yardstick, and embeddings that are all the same.

The yardstick is the loss of the best answer that does not look at the image (`Method.yardstick`). Whoever only sees a loss go
down cannot tell a run that learned the mean grey value from one that learned anatomy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

YARDSTICK = "val_yardstick"
COLLAPSED = 4  # exit code of a run that was to stop when it collapses
SHARE, STEPS = 0.1, 300  # of the run, and steps at least, that a run has before it is judged
CLOSE = 0.005  # of the yardstick: what lies nearer to it than that is no better
MIN_SPREAD = 0.05  # of embeddings; 1 is spread evenly
MIN_RANK = 2.0  # directions that embeddings use
EXPLAINED = 0.05  # of a variance: what a task explains more of than that, it has learned, whatever else it embeds
MIN_IMAGES = 5  # in a batch, for that to mean anything: N images told apart perfectly use N - 1 directions


def last_finite(values: Sequence[Any]) -> float | None:
    """The last number of a list that is one."""
    return next((float(v) for v in reversed(values) if v is not None and math.isfinite(v)), None)


def collapse(log: Mapping[str, Sequence[Any]], num_epochs: int, steps_per_epoch: int, images: int) -> str | None:
    """What is wrong with a run after its last epoch in `log` (nnU-Net's lists, one value per epoch); None where nothing is.

    Says nothing before a tenth of the run and 300 steps. images: in a batch of a process.
    """
    done = len(log.get("val_losses", ()))
    if done < SHARE * num_epochs or done * steps_per_epoch < STEPS:
        return None
    loss, yardstick = last_finite(log.get("val_losses", ())), last_finite(log.get(YARDSTICK, ()))
    spread, rank = (last_finite(log.get(f"val_{name}", ())) for name in ("spread", "effective_rank"))
    slower = "Try a lower learning rate (--lr), a longer warm-up (--set warmup_epochs=N)"
    if spread is not None and spread < MIN_SPREAD:
        return (
            f"the embeddings have collapsed: all images look alike to the network (spread {spread:.3f}, 1 is even). {slower}, "
            "stronger clipping (--set grad_clip=0.1) or a larger batch (--batch-size N)."
        )
    if loss is not None and yardstick is not None and loss >= yardstick - CLOSE * abs(yardstick):
        return (
            f"the validation loss, {loss:.4g}, is no better than an answer that does not look at the image, {yardstick:.4g}. "
            f"{slower} or stronger clipping (--set grad_clip=X); look at the previews whether the images are what they should be."
        )
    explained = last_finite(log.get("val_explained_variance", ())) or 0.0
    if rank is not None and rank < MIN_RANK and images >= MIN_IMAGES and explained < EXPLAINED:
        return (
            f"the embeddings use little more than one direction (effective rank {rank:.2f}), whatever their spread. {slower} or "
            "a larger batch (--batch-size N)."
        )
    return None


def verdict(log: Mapping[str, Sequence[Any]], trivial_answer: str) -> str:
    """One sentence at the end of a run: how its loss compares with the trivial answer's."""
    loss, yardstick = last_finite(log.get("val_losses", ())), last_finite(log.get(YARDSTICK, ()))
    if loss is None:
        return "No validation loss is known, so nothing can be said about what was learned."
    if yardstick is None:
        return f"The validation loss is {loss:.4g}; this task states no yardstick to compare it with."
    explained = last_finite(log.get("val_explained_variance", ()))
    more = f" It explains {explained:.0%} of the variance." if explained is not None else ""
    beside = f"the validation loss is {loss:.4g}; {trivial_answer} would give {yardstick:.4g}.{more}"
    if loss >= yardstick - CLOSE * abs(yardstick):
        return f"No better than guessing: {beside}"
    return f"Learned: {beside}"
