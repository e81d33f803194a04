"""Spark3D: what the encoder sees, what densification adds, what trains, that it learns."""

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.backbones.sparse import HiddenPositions
from nnunet_ssl.methods.spark3d import Densify, Spark3D, Spark3DConfig
from nnunet_ssl.settings.blocks import read_config

PATCH = (16, 24, 16)


def unet(channels: int = 1, ndim: int = 3) -> nn.Module:
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if ndim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    options = {"norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin_kwargs": {"inplace": True}}
    return ResidualEncoderUNet(
        channels, 3, [8, 12, 16], conv, 3, [1, 2, 2], 1, channels, [1, 1], True, norm, nonlin=nn.LeakyReLU, **options
    )


def make(network: nn.Module | None = None, patch=PATCH, **config) -> Spark3D:
    torch.manual_seed(0)
    return Spark3D(wrap_network(network or unet(), patch), Spark3DConfig(**config))


def batch_of(patch=PATCH, channels: int = 1, size: int = 2) -> dict[str, torch.Tensor]:
    image = torch.randn(size, channels, *patch, generator=torch.Generator().manual_seed(7))
    return {"image": image, "excluded": torch.zeros(size, 1, *patch, dtype=torch.bool)}


def prepared(method: Spark3D, batch, seed: int = 0) -> dict[str, torch.Tensor]:
    return method.prepare(batch, torch.Generator().manual_seed(seed))


def test_mask_lies_on_the_coarsest_grid():
    method = make()
    inputs = prepared(method, batch_of())
    assert method.mask_block == (4, 4, 4)
    assert inputs["hidden_cells"].shape == (2, 4, 6, 4)
    assert inputs["hidden_cells"].flatten(1).sum(dim=1).tolist() == [72, 72]
    assert torch.equal(inputs["hidden"][:, 0, 1::4, 2::4, 3::4], inputs["hidden_cells"])
    assert inputs["hidden"].float().mean().item() == pytest.approx(0.75)


def test_larger_blocks_and_one_ratio_per_batch():
    inputs = prepared(make(mask_block=(8, 8, 16), mask_ratio=0.5), batch_of())
    blocks = inputs["hidden"][:, 0, ::8, ::8, ::16]
    assert blocks.flatten(1).sum(dim=1).tolist() == [3, 3]
    assert inputs["hidden"].sum().item() == 6 * 8 * 8 * 16
    method = make(mask_ratio=(0.6, 0.9))
    shares = [prepared(method, batch_of(), seed)["hidden"].flatten(1).float().mean(dim=1) for seed in range(20)]
    assert all(s[0] == s[1] and 0.58 < s[0] <= 0.9 for s in shares)
    assert len({s[0].item() for s in shares}) > 5


def test_recipe_of_the_paper():
    """ResEnc-L's strides at 160^3 give blocks of 32 voxels."""
    network = PlainConvUNet(
        1, 6, [2] * 6, nn.Conv3d, 3, [1, 2, 2, 2, 2, 2], 1, 1, 1, True, nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
    )  # fmt: skip
    method = make(network, (160, 160, 160))
    assert method.mask_block == (32, 32, 32)
    assert method.coarsest == (5, 5, 5)


def test_block_across_the_stride_names_the_next():
    with pytest.raises(ValueError, match=r"total stride, \(4, 4, 4\) voxels.*\[8, 8, 8\]"):
        make(mask_block=6)


def test_single_block_is_refused():
    with pytest.raises(ValueError, match="single block"):
        make(mask_block=32)


def test_transformers_are_refused():
    network = Primus(1, 72, (8, 8, 8), 1, 1, 1, (16, 16, 16))
    with pytest.raises(ValueError, match="spark3d works on unet networks"):
        make(network, (16, 16, 16))


def test_nothing_hidden_reaches_loss_or_prediction():
    """The stem too: in a visible voxel beside the border of a hidden block its kernel would see across."""
    method = make().eval()
    inputs = prepared(method, batch_of())
    other = {**inputs, "image": torch.where(inputs["hidden"], 100 * torch.randn(2, 1, *PATCH), inputs["image"])}
    seen = []
    method.backbone.network.encoder.register_forward_hook(lambda m, i, o: seen.append([i[0], *o]))
    with torch.no_grad():
        first, second = (method(i).preview["reconstruction"] for i in (inputs, other))
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_visible_voxels_do_reach_the_prediction():
    method = make().eval()
    inputs = prepared(method, batch_of())
    noise = torch.randn(2, 1, *PATCH, generator=torch.Generator().manual_seed(1))
    other = {**inputs, "image": torch.where(inputs["hidden"], inputs["image"], noise)}
    with torch.no_grad():
        first, second = (method(i).preview["reconstruction"] for i in (inputs, other))
    assert not torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_densification_against_loops(kernel):
    torch.manual_seed(0)
    densify = Densify(3, 2, kernel, token=True, normalise=True)
    cells = torch.tensor([[[True, False], [False, True]], [[False, False], [True, False]]])
    positions = HiddenPositions(cells)
    x = torch.randn(2, 3, 4, 4).masked_fill(positions.at((4, 4))[0], 0)
    filled = torch.empty_like(x)
    for b in range(2):
        for c in range(3):
            visible = [x[b, c, i, j] for i in range(4) for j in range(4) if not cells[b, i // 2, j // 2]]
            values = torch.stack(visible)
            for i in range(4):
                for j in range(4):
                    normal = (x[b, c, i, j] - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()
                    token = densify.mask_token[0, c, 0, 0]
                    filled[b, c, i, j] = token if cells[b, i // 2, j // 2] else normal
    torch.testing.assert_close(densify(x, positions), densify.projection(filled), rtol=1e-4, atol=1e-4)


def test_mask_tokens_start_small_and_full_resolution_has_no_convolution():
    method = make()
    assert all(0 < d.mask_token.abs().max() <= 0.02 for d in method.densify)
    kernels = [tuple(getattr(d.projection, "kernel_size", ())) for d in method.densify]
    assert kernels == [(), (3, 3, 3), (3, 3, 3)]
    assert set(method.heads()) == {f"densify.{i}.mask_token" for i in range(3)} | {
        f"densify.{i}.projection.{k}" for i in (1, 2) for k in ("weight", "bias")
    }


def test_the_network_keeps_its_names():
    assert list(make().bare_network.state_dict()) == list(unet().state_dict())


def test_gradients_reach_what_trains_and_nothing_else():
    method = make()
    method(prepared(method, batch_of())).loss.backward()
    without = {n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()}
    zero = {n for n in without if "seg_layers.0" not in n}
    # A bias before an instance norm has no effect, and so next to no gradient: exactly zero only by chance.
    assert all(n.endswith("conv.bias") for n in zero)
    assert all(p.grad is None for n, p in method.named_parameters() if not p.requires_grad)
    assert all(p.grad is not None for n, p in method.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "config",
    [
        {"mask_token": False}, {"densify_kernel": 0}, {"densify_kernel": 1, "normalise_skips": False}, {"loss": "l1"},
        {"normalise_target": True, "loss_on": "everywhere"}, {"mask_style": "grid"}, {"mask_style": "slices"},
    ],
)  # fmt: skip
def test_options(config):
    method = make(**config)
    output = method(prepared(method, batch_of()))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "config", [{"densify_kernel": 2}, {"mask_ratio": 1.5}, {"mask_block": 0}, {"loss": "l0"}, {"mask_style": "dots"}]
)
def test_nonsense_is_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        read_config(Spark3DConfig, config, "here")


def test_two_dimensions_channels_batch_of_one_and_anisotropic_strides():
    method = make(unet(2, ndim=2), patch=(32, 24))
    assert method(prepared(method, batch_of((32, 24), channels=2, size=1))).loss.isfinite()
    plain = PlainConvUNet(
        1, 3, [4, 8, 16], nn.Conv3d, [[1, 3, 3], 3, 3], [1, [1, 2, 2], 2], 1, 1, 1, True, nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
    )  # fmt: skip
    method = make(plain, patch=(6, 24, 24))
    assert method.mask_block == (2, 4, 4)
    assert method(prepared(method, batch_of((6, 24, 24)))).loss.isfinite()


def test_excluded_voxels_do_not_count():
    method = make().eval()
    batch = batch_of()
    inputs = prepared(method, batch)
    excluded = torch.zeros_like(batch["excluded"])
    excluded[:, :, :8] = True
    output = method({**inputs, "excluded": excluded})
    error = (output.preview["reconstruction"] - inputs["image"]).square()
    assert output.loss.item() == pytest.approx(error[:, :, 8:][inputs["hidden"][:, :, 8:]].mean().item(), rel=1e-5)


def test_compiled_method_gives_the_same_loss():
    """Hooks that come and go must not be lost on the compiler."""
    method = make()
    inputs, other = prepared(method, batch_of()), prepared(method, batch_of(), seed=5)
    compiled = torch.compile(method, backend="eager")
    for i in (inputs, other):
        assert compiled(i).loss.item() == pytest.approx(method(i).loss.item(), rel=1e-5)


def test_low_precision():
    method = make()
    inputs = prepared(method, batch_of())
    exact = method(inputs).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        assert method(inputs).loss.item() == pytest.approx(exact, rel=0.05)


def test_same_seed_same_mask():
    method = make()
    first, again, other = (prepared(method, batch_of(), seed)["hidden"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_learns_more_than_the_mean():
    noise = torch.randn(4, 1, *PATCH, generator=torch.Generator().manual_seed(2))
    for _ in range(6):
        noise = nn.functional.avg_pool3d(nn.functional.pad(noise, (2,) * 6, mode="replicate"), 5, 1)
    batch = {"image": (noise - noise.mean()) / noise.std(), "excluded": torch.zeros(4, 1, *PATCH, dtype=torch.bool)}
    torch.set_num_threads(1)
    method = make(mask_ratio=0.5)
    optimizer = torch.optim.AdamW(method.parameters(), lr=5e-3)
    explained = []
    for step in range(60):
        output = method(prepared(method, batch, seed=step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        explained.append(output.terms["explained_variance"].item())
    assert explained[0] < 0.1
    assert sum(explained[-10:]) / 10 > 0.4
