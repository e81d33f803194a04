"""What makes transformer blocks cheaper must not change what they compute."""

from __future__ import annotations

import copy

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from timm.models.eva import EvaBlock
from torch import nn

from nnunet_ssl.backbones.attention import SHORT, attend_by_products_when_short
from nnunet_ssl.backbones.drop_path import ImageEvaBlock, drop_by_image, use_keys
from nnunet_ssl.views.rng import ImageGenerator

IMAGES, TOKENS, WIDTH = 6, 5, 24


def keys_of(seed):
    return ImageGenerator("cpu", seed, range(IMAGES)).keys


def blocks(rate, **options):
    """The same random block as timm has it, and as one that skips; both drop by image."""
    torch.manual_seed(0)
    ours = EvaBlock(WIDTH, 2, swiglu_mlp=True, scale_mlp=True, num_prefix_tokens=0, drop_path=rate, **options)
    plain = copy.deepcopy(ours)
    paths = [drop_by_image(ours), drop_by_image(plain)]
    plain.__class__ = EvaBlock
    assert type(ours) is ImageEvaBlock
    return ours, plain, [p for both in paths for p in both]


def run(block, tokens, rope):
    tokens = tokens.clone().requires_grad_()
    out = block(tokens, rope=rope)
    (out * torch.linspace(-1, 1, WIDTH)).sum().backward()
    return out.detach(), tokens.grad, {n: p.grad for n, p in block.named_parameters()}


@pytest.mark.parametrize("gamma", [None, 0.1])
@pytest.mark.parametrize("rope_by_image", [True, False])
def test_skipping_what_is_dropped_changes_nothing(gamma, rope_by_image):
    ours, plain, paths = blocks(0.5, init_values=gamma)
    tokens = torch.randn(IMAGES, TOKENS, WIDTH)
    rope = torch.randn(*((IMAGES, 1) if rope_by_image else ()), TOKENS, WIDTH)
    kept = []
    for seed in range(4):
        use_keys(paths, keys_of(seed))
        kept.append(len(ours.drop_path1.kept(IMAGES)))
        for block in (ours, plain):
            block.zero_grad()
        found, expected = run(ours, tokens, rope), run(plain, tokens, rope)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(set(kept)) > 1


def test_dropped_images_are_not_computed():
    ours, _, paths = blocks(0.5)
    seen = []
    ours.attn.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    use_keys(paths, keys_of(1))
    ours(torch.randn(IMAGES, TOKENS, WIDTH))
    assert seen == [len(ours.drop_path1.kept(IMAGES))]
    assert 0 < seen[0] < IMAGES
    ours.eval()(torch.randn(IMAGES, TOKENS, WIDTH))
    assert seen[1] == IMAGES


def test_gradients_are_there_even_when_every_image_is_dropped():
    ours, plain, paths = blocks(0.999)
    use_keys(paths, keys_of(0))
    assert ours.drop_path1.kept(IMAGES) == ours.drop_path2.kept(IMAGES) == []
    tokens = torch.randn(IMAGES, TOKENS, WIDTH)
    found, expected = run(ours, tokens, None), run(plain, tokens, None)
    assert torch.equal(found[0], tokens)
    assert all(g is not None and not g.any() for g in found[2].values())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("tokens", "fused"), [(SHORT, False), (SHORT + 1, True)])
def test_short_sequences_attend_by_products_with_the_same_result(tokens, fused):
    torch.manual_seed(0)
    network = nn.Sequential(EvaBlock(WIDTH, 2, num_prefix_tokens=0))
    expected = network(x := torch.randn(2, tokens, WIDTH))
    assert network[0].attn.fused_attn is True
    attend_by_products_when_short(network)
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    assert network[0].attn.fused_attn is fused


def turned(x, angles):
    """Every pair of numbers of a token [N, D] turned by its angle [N, D / 2] (Su et al., RoFormer, 2021, equation 34)."""
    even, odd = x[:, 0::2], x[:, 1::2]
    pairs = torch.stack([even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()], dim=-1)
    return pairs.flatten(1)


def angles_of(grid, width):
    """Angles [tokens, width / 2]: per axis the token's place times width / 6 frequencies that fall from 1 towards 1 / 10000."""
    count = width // (2 * len(grid))
    frequencies = 10000.0 ** (-torch.arange(count) / count)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in grid))
    return torch.cat([places[:, axis, None] * frequencies for axis in range(len(grid))], dim=1)


def block_of_the_papers(block, tokens, angles):
    """A block of Primus for the tokens [N, C] of one image, one head after the other, out of its linear layers."""
    attention, x = block.attn, block.norm1(tokens)
    heads = []
    for q, k, v in zip(
        *(p(x).chunk(attention.num_heads, 1) for p in (attention.q_proj, attention.k_proj, attention.v_proj)),
        strict=True,
    ):
        scores = turned(q, angles) @ turned(k, angles).T / q.shape[1] ** 0.5
        heads.append(scores.softmax(dim=1) @ v)
    tokens = tokens + block.gamma_1 * attention.proj(attention.norm(torch.cat(heads, dim=1)))
    mlp, x = block.mlp, block.norm2(tokens)
    return tokens + block.gamma_2 * mlp.fc2(mlp.norm(nn.functional.silu(mlp.fc1_g(x)) * mlp.fc1_x(x)))


def test_blocks_of_primus_are_those_its_weights_were_trained_with():
    """timm's block and position embedding against the formulas; those of timm 1.0.31 know two axes alone and fail here."""
    torch.manual_seed(0)
    network = Primus(1, 144, (8,) * 3, 1, 2, 2, (16, 24, 32), init_values=0.1, scale_attn_inner=True).eval()
    block, rope = network.eva.blocks[0], network.eva.rope.get_embed()
    tokens = torch.randn(2, 24, 144)
    with torch.no_grad():
        expected = torch.stack([block_of_the_papers(block, image, angles_of((2, 3, 4), 72)) for image in tokens])
        torch.testing.assert_close(block(tokens, rope=rope), expected, rtol=1e-4, atol=1e-5)
        drop_by_image(network)
        torch.testing.assert_close(
            block(tokens, rope=rope), expected, rtol=1e-4, atol=1e-5
        )  # ours, where it is another
