"""nnU-Net's -pretrained_weights: what nnU-Net's own function gets to load, what is adapted, what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import nn

from nnunet_ssl.checkpoints.adaptation.options import TransferOptions
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.integration.pretrained_weights import load, load_into


def network(channels: int = 1, classes: int = 2, width: int = 8, seed: int = 0) -> nn.Module:
    """A tiny 2D U-Net with weights of its own."""
    torch.manual_seed(seed)
    return PlainConvUNet(
        channels, 2, (width, 2 * width), nn.Conv2d, 3, (1, 2), 1, classes, 1, norm_op=nn.InstanceNorm2d, nonlin=nn.ReLU
    )


class Stock:
    """Stands for nnU-Net's function and remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any) -> None:
        self.calls.append(args)


@pytest.fixture
def stock() -> Stock:
    return Stock()


def write(path: Path, source: nn.Module, **further: Any) -> str:
    torch.save({"network_weights": source.state_dict(), **further}, path)
    return str(path)


def first_kernel(module: nn.Module) -> torch.Tensor:
    return module.state_dict()["encoder.stages.0.0.convs.0.conv.weight"]


OURS = {"ssl": {"method": "mae", "backbone": "unet", "patch_size": [32, 32], "num_input_channels": 1}}


@pytest.mark.parametrize("further", [{}, OURS])
def test_a_file_that_fits_is_nnunets_own_business(stock: Stock, tmp_path: Path, further: dict[str, Any]) -> None:
    file, target = write(tmp_path / "a.pth", network(classes=3), **further), network(seed=1)
    load(target, file, True, stock)
    assert stock.calls == [(target, file, True)]
    (handed,) = (call[1] for call in stock.calls)
    assert torch.equal(first_kernel(target), first_kernel(network(seed=1)))  # by us, nothing was loaded
    assert set(handed.checkpoint) == {"network_weights", *further}  # read once, and by us


def test_nnunets_function_really_loads_ours(tmp_path: Path) -> None:
    source, target = network(classes=3), network(seed=1)
    load_pretrained_weights(target, write(tmp_path / "a.pth", source, **OURS), verbose=True)
    assert torch.equal(first_kernel(target), first_kernel(source))


def test_our_file_with_other_channels_is_adapted(
    stock: Stock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = network(), network(channels=3, seed=1)
    load(target, write(tmp_path / "a.pth", source, **OURS), True, stock)
    assert stock.calls == []
    assert torch.allclose(first_kernel(target).sum(dim=1), first_kernel(source).sum(dim=1), atol=1e-6)
    assert "adapted" in capsys.readouterr().out
    assert target.nnunet_ssl_transfer_report.encoder_fraction == 1


def test_nnunets_file_that_does_not_fit_keeps_nnunets_error(tmp_path: Path) -> None:
    file = write(tmp_path / "a.pth", network())
    with pytest.raises(AssertionError, match="does not seem to be compatible with your network"):
        load_pretrained_weights(network(channels=3), file)


def test_a_trainer_that_asks_gets_any_file_adapted(stock: Stock, tmp_path: Path) -> None:
    source, target = network(), network(channels=3, seed=1)
    target.nnunet_ssl_transfer = TransferOptions("encoder+decoder", "repeat", (32, 32))
    load(target, write(tmp_path / "a.pth", source), True, stock)
    name = "decoder.stages.0.convs.0.conv.weight"
    assert torch.equal(target.state_dict()[name], source.state_dict()[name])
    assert stock.calls == []


def test_a_bare_state_dict_needs_a_trainer_that_asks(stock: Stock, tmp_path: Path) -> None:
    source, target = network(), network(seed=1)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="Use -tr SSLFinetuneTrainer"):
        load(target, str(tmp_path / "a.ckpt"), True, stock)
    target.nnunet_ssl_transfer = TransferOptions()
    load(target, str(tmp_path / "a.ckpt"), True, stock)
    assert torch.equal(first_kernel(target), first_kernel(source))


def test_pretraining_goes_on_with_encoder_and_decoder(tmp_path: Path) -> None:
    class Method(nn.Module):
        def __init__(self, bare: nn.Module) -> None:
            super().__init__()
            self.bare_network = bare

    source, method = network(), Method(network(seed=1))
    report = load_into(torch.compile(method), write(tmp_path / "a.pth", source))
    assert all(
        torch.equal(v, source.state_dict()[k]) for k, v in method.bare_network.state_dict().items() if "seg" not in k
    )
    assert method.nnunet_ssl_transfer_report is report


def test_too_little_that_fits_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    target = network(width=16, seed=1)
    before = first_kernel(target).clone()
    with pytest.raises(CheckpointError, match="of the encoder's parameters fit"):
        load_into(target, write(tmp_path / "a.pth", network()))
    assert torch.equal(first_kernel(target), before)


def test_a_file_that_would_run_code_never_reaches_nnunet(stock: Stock, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    torch.save({"network_weights": {}, "bomb": Bomb()}, tmp_path / "a.pth", pickle_module=pickle)
    with pytest.raises(CheckpointError, match="refused"):
        load(network(), str(tmp_path / "a.pth"), True, stock)
    assert stock.calls == []
    assert not (tmp_path / "exploded").exists()
