"""Thin feature maps in bfloat16 on CPUs: gradients are those of float32, and nothing else changes."""

import pytest
import torch
from torch import nn

from nnunet_ssl.backbones.bfloat16_conv3d import avoid_bfloat16_conv3d_bug


def weight_gradient(depth: int, kernel: int, half: bool, guarded: bool, rubbish: int = 1) -> torch.Tensor:
    torch.manual_seed(0)
    conv = nn.Conv3d(16, 16, kernel, padding=kernel // 2)
    if guarded:
        avoid_bfloat16_conv3d_bug(conv)
    x, target = torch.randn(4, 16, depth, 4, 4), torch.randn(4, 16, depth, 4, 4)
    for _ in range(5):  # memory that is free again and full of numbers nobody could miss
        torch.full((rubbish,), 1e30)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        y = conv(x)
    (y.float() * target).sum().backward()
    return conv.weight.grad


@pytest.mark.parametrize(("depth", "kernel"), [(2, 3), (1, 3), (3, 3), (4, 5), (2, 5), (8, 3)])
def test_gradients_are_those_of_float32(depth, kernel):
    expected = weight_gradient(depth, kernel, half=False, guarded=False)
    for rubbish in (1, 17, 333, 5007, 100_000):
        found = weight_gradient(depth, kernel, half=True, guarded=True, rubbish=rubbish)
        assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_thick_maps_stay_in_half_precision_and_autocast_is_back_afterwards():
    conv = nn.Conv3d(1, 4, 3, padding=1)
    avoid_bfloat16_conv3d_bug(conv)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(torch.randn(1, 1, 4, 4, 4)).dtype == torch.bfloat16
        assert conv(torch.randn(1, 1, 2, 4, 4)).dtype == torch.float32
        with pytest.raises(RuntimeError):
            conv(torch.randn(1, 3, 2, 4, 4))
        assert conv(torch.randn(1, 1, 4, 4, 4)).dtype == torch.bfloat16
    assert conv(torch.randn(1, 1, 4, 4, 4)).dtype == torch.float32
