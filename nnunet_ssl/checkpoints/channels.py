"""Fit the convolution that sees the image to another number of input channels."""

from __future__ import annotations

import torch
from torch import Tensor

CHANNEL_MODES = ("repeat", "mean", "random")


def fit_channels(weight: Tensor, num_channels: int, mode: str) -> Tensor:
    """Weight [out, N, *k] -> [out, M, *k] for M = `num_channels`.

    Invariance of both modes: one image repeated in all M channels gives the output that it gave repeated in all N.
    "repeat": the N source channels are cycled through the M, each divided by how often it occurs, so by M / N where
    that is whole (1 -> M: 1 / M each); for M < N, target channel m holds the sum of the source channels m, m + M, ...
    "mean": every target channel holds the sum over the source channels divided by M.
    """
    source_channels = weight.shape[1]
    if mode == "mean":
        mixing = torch.full((num_channels, source_channels), 1.0 / num_channels)
    elif mode == "repeat":
        longer = torch.arange(max(num_channels, source_channels))
        mixing = torch.zeros(num_channels, source_channels)
        mixing[longer % num_channels, longer % source_channels] = 1.0
        mixing /= mixing.sum(dim=0)  # every source channel is passed on exactly once in total
    else:
        raise ValueError(f"Channels are fitted by repeat or mean, found {mode!r}.")
    return torch.einsum("on...,mn->om...", weight, mixing.to(weight))
