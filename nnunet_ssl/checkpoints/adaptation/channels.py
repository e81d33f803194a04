"""Fit the convolution that sees the image to another number of input channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_ssl.errors import CheckpointError

CHANNEL_MODES = ("repeat", "mean", "by_name", "random")


def fit_channels(weight: Tensor, num_channels: int, mode: str) -> Tensor:
    """Weight [out, N, *k] -> [out, M, *k] for M = `num_channels`, by "repeat" or "mean".

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
    return mix_channels(weight, mixing)


def mix_channels(weight: Tensor, mixing: Tensor) -> Tensor:
    """Weight [out, N, *k] -> [out, M, *k]: target channel m is the sum over n of `mixing` [M, N] times source n."""
    return torch.einsum("on...,mn->om...", weight, mixing.to(weight))


def mixing_by_name(source: Sequence[str], target: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Mixing [M, N] that gives every target channel the source channel of its name, and what became of each in words.

    Case does not matter. A target channel whose name the source lacks gets the mean of the source channels that no
    other takes, or of all where none is left. With M = N the output for one image in all channels stays what it was;
    otherwise only the response to the matched channels does. Raises CheckpointError when no name matches.
    """
    plain = [[" ".join(name.lower().split()) for name in names] for names in (source, target)]
    free, matched = list(range(len(source))), dict[int, int]()
    for place, name in enumerate(plain[1]):
        number = next((n for n in free if plain[0][n] == name), None)
        if number is not None:
            matched[place] = number
            free.remove(number)
    if not matched:
        raise CheckpointError(
            f"No channel name of the data set ({', '.join(target)}) is among the checkpoint's ({', '.join(source)}), so "
            'channels by_name cannot work. Use equal names in dataset.json, or channels "repeat" or "mean".'
        )
    mixing = torch.zeros(len(target), len(source))
    notes = []
    for place, name in enumerate(target):
        used = [matched[place]] if place in matched else (free or list(range(len(source))))
        mixing[place, used] = 1.0 / len(used)
        names = ", ".join(source[n] for n in used)
        notes.append(
            f"{name} from {names}" if place in matched else f"{name} (not in the checkpoint) from the mean of {names}"
        )
    dropped = [source[n] for n in free if len(matched) == len(target)]
    return mixing, notes + ([f"{', '.join(dropped)} of the checkpoint left out"] if dropped else [])
