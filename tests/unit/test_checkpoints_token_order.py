"""Converting nnssl's token order to the natural one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from torch import Tensor

from nnunet_ssl.checkpoints.token_order import needs_conversion, to_natural_order
from nnunet_ssl.errors import CheckpointError

TOKEN = 4


def primus(grid: Sequence[int], heads: int) -> Primus:
    torch.manual_seed(0)
    network = Primus(
        2,
        12 * heads,
        (TOKEN,) * 3,
        2,
        eva_depth=2,
        eva_numheads=heads,
        input_shape=tuple(n * TOKEN for n in grid),
        init_values=0.1,
        scale_attn_inner=True,
    ).eval()
    for parameter in network.parameters():  # sharp attention, so that a wrong position is seen in the features
        torch.nn.init.normal_(parameter, std=0.5)
    return network


@torch.no_grad()
def features(network: Primus, image: Tensor) -> Tensor:
    """Features [B, C, n0, n1, n2] with tokens in natural order."""
    tokens = network.down_projection(image)
    return network.eva(tokens.flatten(2).transpose(1, 2))[0].transpose(1, 2).unflatten(2, tokens.shape[2:])


@torch.no_grad()
def features_in_swapped_order(network: Primus, image: Tensor, grid: Sequence[int], heads: int) -> Tensor:
    """Features [B, C, n0, n1, n2] of the same weights run on (A1, A0, A2) sequences, one token at a time laid out by hand."""
    n0, n1, n2 = grid
    swapped = primus((n1, n0, n2), heads)  # its rotary table belongs to the swapped grid
    swapped.load_state_dict(network.state_dict())
    embedded = network.down_projection(image)
    places = [(a0, a1, a2) for a1 in range(n1) for a0 in range(n0) for a2 in range(n2)]
    sequence = torch.stack([embedded[:, :, a0, a1, a2] for a0, a1, a2 in places], dim=1)
    encoded = swapped.eva(sequence)[0]
    result = torch.empty_like(embedded)
    for position, (a0, a1, a2) in enumerate(places):
        result[:, :, a0, a1, a2] = encoded[:, position]
    return result


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("grid", [(3, 3, 3), (2, 3, 4), (4, 1, 2)])
def test_converted_weights_do_in_natural_order_what_they_did_in_the_swapped_one(
    grid: tuple[int, int, int], heads: int
) -> None:
    network = primus(grid, heads)
    image = torch.randn(2, 2, *(n * TOKEN for n in grid))
    expected = features_in_swapped_order(network, image, grid, heads)
    assert (features(network, image) - expected).abs().max() > 0.01, "the order makes no difference: nothing is tested"
    original = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    converted = to_natural_order(network.state_dict(), grid, heads)
    assert all(torch.equal(tensor, original[name]) for name, tensor in network.state_dict().items())
    network.load_state_dict(converted)
    torch.testing.assert_close(features(network, image), expected, atol=1e-5, rtol=1e-5)


def test_twice_is_back() -> None:
    weights = primus((2, 3, 4), 3).state_dict()
    there = to_natural_order(weights, (2, 3, 4), 3)
    back = to_natural_order(there, (3, 2, 4), 3)
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())
    assert not torch.equal(there["eva.pos_embed"], weights["eva.pos_embed"])


def test_only_what_knows_positions_changes() -> None:
    weights = primus((2, 3, 4), 3).state_dict()
    converted = to_natural_order(weights, (2, 3, 4), 3)
    changed = {
        name.removeprefix("eva.blocks.0.") for name in weights if not torch.equal(converted[name], weights[name])
    }
    changed = {name for name in changed if not name.startswith("eva.blocks.")}
    assert changed == {"eva.pos_embed", "attn.q_proj.weight", "attn.q_proj.bias", "attn.k_proj.weight"}


def test_shapes_that_do_not_fit_are_refused() -> None:
    weights = primus((2, 3, 4), 3).state_dict()
    with pytest.raises(CheckpointError, match=r"eva\.pos_embed has shape \(1, 24, 36\).*\(2, 2, 2\)"):
        to_natural_order(weights, (2, 2, 2), 3)
    with pytest.raises(CheckpointError, match="36 output channels, which do not divide into 5 heads"):
        to_natural_order(weights, (2, 3, 4), 5)


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ({"trainer_name": "BaseEvaMAETrainer_BS8"}, True),
        ({"trainer_name": "SwinUNETREvaTrainer"}, True),
        ({"trainer_name": "SimMIMEvaTrainer"}, False),
        ({"trainer_name": "BaseMAETrainer"}, False),
        ({"trainer_name": "SSLMAETrainer", "ssl": {"token_order": "natural"}}, False),
        ({"trainer_name": "MyEvaTrainer", "ssl": {"token_order": "natural"}}, False),
        ({}, False),
    ],
)
def test_who_needs_conversion(checkpoint: dict[str, object], expected: bool) -> None:
    assert needs_conversion(checkpoint) is expected
