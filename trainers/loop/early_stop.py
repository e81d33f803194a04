"""Ending a run whose measure has not become better for a while; it then counts as finished."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunet_ssl.messages import counted


class Enough(Exception):
    """Leave nnU-Net's loop over epochs: the run has reached its end before the last of them."""


def stalled(values: Sequence[float], patience: int | None, lower_is_better: bool = True) -> bool:
    """Whether the best of an epoch's values lies `patience` epochs back or more; never where patience is None.

    Values that are not finite are no better than any.
    """
    if patience is None:
        return False
    sign = 1 if lower_is_better else -1
    costs = [sign * float(v) if math.isfinite(v) else math.inf for v in values]
    return bool(costs) and len(costs) - 1 - costs.index(min(costs)) >= patience


def sentence(epochs: int, patience: int, measure: str) -> str:
    """What the log says of it. epochs: that were trained; measure: which has not become better."""
    long = counted(patience, "epoch")
    return f"Ended after {counted(epochs, 'epoch')}: {measure} has not become better for {long} (early_stop)."
