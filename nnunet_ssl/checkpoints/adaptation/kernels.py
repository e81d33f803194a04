"""Fit convolution kernels of one shape to another."""

from __future__ import annotations

from collections.abc import Sequence

from acvl_utils.cropping_and_padding.padding import pad_nd_image
from torch import Tensor


def fit_kernel(weight: Tensor, kernel: Sequence[int]) -> Tensor | None:
    """Weight [out, in, *k] of a convolution for another kernel size, or None where no meaningful way exists.

    A collapsed axis (3 -> 1, and the first spatial axis for 3D -> 2D) is summed: an image that is constant along it
    then gives the same response. (Upstream's dynamic fine-tuning averages instead, which scales the response by 1/3 per
    collapsed axis.) A larger kernel of the same parity is zero-padded around the old one: the response is unchanged.
    """
    if weight.ndim - 2 == len(kernel) + 1:
        weight = weight.sum(dim=2)
    if weight.ndim - 2 != len(kernel):
        return None
    for axis, wanted in enumerate(kernel, start=2):
        have = weight.shape[axis]
        if wanted == 1:
            weight = weight.sum(dim=axis, keepdim=True)
        elif wanted < have or (wanted - have) % 2:
            return None
    return pad_nd_image(weight, tuple(kernel))  # the old one in the middle
