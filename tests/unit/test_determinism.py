"""--deterministic: what it asks of torch, that nothing of it is left behind, and what the log is told."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from timm.models.eva import EvaBlock
from torch.utils.checkpoint import checkpoint

from nnunet_ssl.backbones.attention import attend_deterministically
from nnunet_ssl.trainers.device.determinism import FIXED, WORKSPACE, deterministic


def state():
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "only warnings": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "workspace": os.environ.get(WORKSPACE),
        "filters": list(warnings.filters),
        "show": warnings.showwarning,
    }


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_everything_is_put_back_even_after_an_error(workspace, monkeypatch):
    if workspace is None:
        monkeypatch.delenv(WORKSPACE, raising=False)
    else:
        monkeypatch.setenv(WORKSPACE, workspace)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before, inside = state(), {}

    def fail() -> None:
        inside.update(state())
        raise KeyError

    with pytest.raises(KeyError), deterministic(print):
        fail()
    assert state() == before
    assert inside["algorithms"]
    assert inside["only warnings"]
    assert inside["cudnn"] == (True, False)
    assert inside["workspace"] == (workspace or FIXED)  # also a choice of the user's that is deterministic


def test_operators_without_a_counterpart_are_named_and_other_warnings_shown():
    said: list[str] = []

    def warn() -> None:
        for _ in range(2):
            warnings.warn(
                "upsample_trilinear3d_backward_out_cuda does not have a deterministic implementation, but you set "
                "'torch.use_deterministic_algorithms(True, warn_only=True)'. You can file an issue at ...",
                stacklevel=1,
            )
        warnings.warn("something else", stacklevel=1)

    with pytest.warns(UserWarning, match="something else") as shown, deterministic(said.append):
        warn()
    assert len(shown) == 1
    assert len(said) == 2  # the trainer's log keeps the first
    assert said[0].startswith("upsample_trilinear3d_backward_out_cuda has no deterministic counterpart")


class Watch(torch.autograd.Function):
    """Notes whether torch is strict, forwards and backwards."""

    @staticmethod
    def forward(ctx, x, seen, name):
        ctx.seen, ctx.name = seen, name
        seen.append((name, not torch.is_deterministic_algorithms_warn_only_enabled()))
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.seen.append((f"{ctx.name} backward", not torch.is_deterministic_algorithms_warn_only_enabled()))
        return gradient, None, None


class Watched(torch.nn.Module):
    """A module after which `Watch` looks."""

    def __init__(self, module, seen, name):
        super().__init__()
        self.module, self.seen, self.name = module, seen, name

    def forward(self, x):
        return Watch.apply(self.module(x), self.seen, self.name)


@pytest.mark.parametrize("again", [False, True])
def test_only_attention_is_strict_and_backwards_too(again):
    """Also where a block is computed again in the backward pass."""
    seen: list[tuple[str, bool]] = []
    block = EvaBlock(24, 2, swiglu_mlp=True, scale_mlp=True, num_prefix_tokens=0, attn_type="eva")
    block.attn.proj = Watched(block.attn.proj, seen, "attention")
    block.mlp.fc2 = Watched(block.mlp.fc2, seen, "mlp")
    block.norm1 = Watched(block.norm1, seen, "norm")
    attend_deterministically(block)
    tokens = torch.randn(2, 5, 24, requires_grad=True)

    def run():
        (checkpoint(block, tokens, use_reentrant=False) if again else block(tokens)).sum().backward()

    with deterministic(print):
        run()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    names = {name for name, _ in seen}
    assert names == {f"{n}{b}" for n in ("attention", "mlp", "norm") for b in ("", " backward")}
    assert all(strict == name.startswith("attention") for name, strict in seen), seen
    run()
    assert not torch.are_deterministic_algorithms_enabled()  # and without the setting it leaves everything as it is
