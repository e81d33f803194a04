"""Putting weights into networks of other channels, kernels, sizes and names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nnunet_ssl.checkpoints.adaptation.adapt import adapt, adapt_checkpoint
from nnunet_ssl.checkpoints.adaptation.channels import fit_channels
from nnunet_ssl.checkpoints.adaptation.kernels import fit_kernel
from nnunet_ssl.checkpoints.adaptation.position_embedding import resize_position_embedding
from nnunet_ssl.checkpoints.adaptation.report import ENCODER_GROUPS, TransferReport
from nnunet_ssl.errors import CheckpointError


def unet(
    channels: int = 1,
    classes: int = 2,
    features: Sequence[int] = (4, 8, 8),
    kernels: Any = 3,
    plain: bool = False,
    ndim: int = 3,
    seed: int = 0,
) -> nn.Module:
    torch.manual_seed(seed)
    stages = len(features)
    network = (PlainConvUNet if plain else ResidualEncoderUNet)(
        channels,
        stages,
        list(features),
        nn.Conv3d if ndim == 3 else nn.Conv2d,
        kernels,
        [1] + [2] * (stages - 1),
        [2] * stages,
        classes,
        [1] * (stages - 1),
        True,
        nn.InstanceNorm3d if ndim == 3 else nn.InstanceNorm2d,
        {"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
    )
    for parameter in network.parameters():  # norms as well, so that a mix-up of any two tensors is seen
        nn.init.normal_(parameter, std=0.3)
    return network


def primus(
    channels: int = 1,
    classes: int = 2,
    shape: Sequence[int] = (16, 16, 16),
    token: int = 8,
    width: int = 24,
    seed: int = 0,
) -> nn.Module:
    torch.manual_seed(seed)
    return Primus(
        channels,
        width,
        (token,) * 3,
        classes,
        eva_depth=2,
        eva_numheads=2,
        input_shape=tuple(shape),
        init_values=0.1,
        scale_attn_inner=True,
    ).eval()


def encoded(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        if hasattr(network, "eva"):
            return network.eva(network.down_projection(image).flatten(2).transpose(1, 2))[0]
        return network.encoder(image)[-1]


def load(source: dict[str, Tensor], target: nn.Module, **options: Any) -> TransferReport:
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state, report = adapt(source, target, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items()), "target was changed"
    aliases: dict[int, list[str]] = {}
    for name, tensor in target.state_dict(keep_vars=True).items():
        aliases.setdefault(id(tensor), []).append(name)
    for names in aliases.values():
        assert all(torch.equal(state[names[0]], state[name]) for name in names)
    target.load_state_dict(state, strict=True)
    in_network = sum(count.in_network for count in report.groups.values())
    assert in_network == sum(parameter.numel() for parameter in target.parameters())
    json.dumps(report.to_json())
    return report


def all_from_checkpoint(report: TransferReport) -> bool:
    return report.encoder_fraction == 1.0 and all(report.groups[g].fresh == 0 for g in ENCODER_GROUPS)


NETWORKS = {
    "resenc": lambda **kw: unet(**kw),
    "plain": lambda **kw: unet(plain=True, **kw),
    "resenc 2d": lambda **kw: unet(ndim=2, **kw),
    "plain 2d": lambda **kw: unet(plain=True, ndim=2, **kw),
    "primus": lambda **kw: primus(**kw),
}


@pytest.mark.parametrize(
    ("kind", "prefix"), [*((kind, "") for kind in NETWORKS), ("resenc", "module."), ("primus", "_orig_mod.")]
)
def test_same_network_gets_its_encoder(kind: str, prefix: str) -> None:
    source, target = NETWORKS[kind](classes=2), NETWORKS[kind](classes=3, seed=1)
    image = torch.randn(1, 1, *(16,) * (2 if "2d" in kind else 3))
    assert not torch.allclose(encoded(source, image), encoded(target, image), atol=1e-3)
    fresh = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    report = load({prefix + name: tensor for name, tensor in source.state_dict().items()}, target)
    assert torch.equal(encoded(source, image), encoded(target, image))
    assert all_from_checkpoint(report)
    assert sum(report.groups[g].adapted for g in ENCODER_GROUPS) == 0
    assert sum(report.groups[g].left_out for g in ENCODER_GROUPS) == 0
    assert report.groups["decoder"].loaded == report.groups["heads"].loaded == 0
    for name, tensor in target.state_dict().items():
        if name.startswith(("decoder.stages", "decoder.transpconvs", "decoder.seg_layers", "up_projection")):
            assert torch.equal(tensor, fresh[name]), name


@pytest.mark.parametrize("kind", NETWORKS)
def test_decoder_comes_along_but_never_the_segmentation_layers(kind: str) -> None:
    source, target = NETWORKS[kind](), NETWORKS[kind](seed=1)
    report = load(source.state_dict(), target, transfer="encoder+decoder")
    assert report.groups["decoder"].fresh == 0
    image = torch.randn(1, 1, *(16,) * (2 if "2d" in kind else 3))
    if kind == "primus":  # same number of classes: its last layer is no segmentation layer
        assert torch.equal(source(image), target(image))
        return
    assert report.groups["heads"].loaded == 0
    assert not torch.equal(source(image), target(image))
    target.decoder.seg_layers.load_state_dict(source.decoder.seg_layers.state_dict())
    assert torch.equal(source(image), target(image))


def test_primus_decoder_for_other_classes_stays_fresh_where_shapes_differ() -> None:
    report = load(primus(classes=1).state_dict(), primus(classes=5, seed=1), transfer="encoder+decoder")
    assert report.groups["heads"].loaded == 0
    assert report.groups["heads"].left_out > 0
    assert all_from_checkpoint(report)


def test_counts_by_hand() -> None:
    source = unet(classes=3)
    report = load(source.state_dict() | {"projector.weight": torch.zeros(7, 3)}, unet(classes=2, seed=1))
    stem = sum(p.numel() for p in source.encoder.stem.parameters())
    encoder = sum(p.numel() for p in source.encoder.stages.parameters())
    heads = sum(p.numel() for p in source.decoder.seg_layers.parameters())
    decoder = sum(p.numel() for p in source.parameters()) - stem - encoder - heads
    assert (report.groups["stem"].loaded, report.groups["encoder"].loaded) == (stem, encoder)
    assert report.groups["decoder"].fresh == report.groups["decoder"].left_out == decoder
    assert report.groups["heads"].left_out == heads + 21


def test_trained_alias_wins() -> None:
    """SparK's sparse conversion leaves `conv` and `norm` untrained: `all_modules` holds what was trained."""
    source, target = unet(), unet(seed=1)
    weights = source.state_dict()
    copies = {n for n in weights if (".conv." in n or ".norm." in n) and ".all_modules." not in n}
    stale = {n: torch.full_like(t, 9.0) if n in copies else t for n, t in weights.items()}
    assert len(copies) == sum(".all_modules." in n for n in weights)
    report = load(stale, target, transfer="encoder+decoder", channels="repeat")
    assert all_from_checkpoint(report)
    image = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(encoded(source, image), encoded(target, image))
    multi_channel = unet(channels=2, seed=2)
    load(stale, multi_channel)
    torch.testing.assert_close(encoded(multi_channel, image.repeat(1, 2, 1, 1, 1)), encoded(source, image))


@pytest.mark.parametrize("kept", ["conv", "all_modules", "decoder.encoder"])
def test_one_name_of_each_tensor_is_enough(kept: str) -> None:
    source, target = unet(), unet(seed=1)
    weights = source.state_dict()
    if kept == "decoder.encoder":
        weights = {n: t for n, t in weights.items() if not n.startswith("encoder.")}
    else:
        weights = {n: t for n, t in weights.items() if (".all_modules." in n) == (kept == "all_modules")}
    assert all_from_checkpoint(load(weights, target))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("wrapper", ["encoder.", "architecture.", "student.backbone."])
def test_wrapped_networks_are_unwrapped(kind: str, wrapper: str) -> None:
    source, target = NETWORKS[kind](), NETWORKS[kind](seed=1)
    weights = {wrapper + name: tensor for name, tensor in source.state_dict().items()}
    assert all_from_checkpoint(load(weights | {"projector.weight": torch.zeros(2)}, target))


@pytest.mark.parametrize("kind", NETWORKS)
def test_encoder_only_files(kind: str) -> None:
    source, target = NETWORKS[kind](), NETWORKS[kind](seed=1)
    if kind == "primus":
        report = load(source.eva.state_dict(), target)
        assert report.groups["stem"].loaded == 0
        assert report.groups["encoder"].fresh == report.groups["position embedding"].fresh == 0
    else:
        assert all_from_checkpoint(load(source.encoder.state_dict(), target))


# ---- channels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["repeat", "mean"])
@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 4), (2, 3), (3, 1), (3, 2), (5, 3), (4, 4)])
def test_repeated_image_gives_the_same_stem_output(mode: str, before: int, after: int) -> None:
    weight, image = torch.randn(6, before, 3, 3, 3), torch.randn(2, 1, 6, 6, 6)
    adapted = fit_channels(weight, after, mode)
    torch.testing.assert_close(
        F.conv3d(image.repeat(1, after, 1, 1, 1), adapted),
        F.conv3d(image.repeat(1, before, 1, 1, 1), weight),
        atol=1e-4,  # of sums of more than a hundred products
        rtol=1e-5,
    )


def slow_repeat(weight: Tensor, channels: int) -> Tensor:
    """Cycle through the source channels by hand, then divide each by how often it was used."""
    source = weight.shape[1]
    result = torch.zeros(weight.shape[0], channels, *weight.shape[2:])
    if channels < source:
        for n in range(source):
            result[:, n % channels] += weight[:, n]
        return result
    uses = [sum(m % source == n for m in range(channels)) for n in range(source)]
    for m in range(channels):
        result[:, m] = weight[:, m % source] / uses[m % source]
    return result


@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 4), (2, 3), (3, 1), (5, 3)])
def test_repeat_against_its_slow_version(before: int, after: int) -> None:
    weight = torch.randn(6, before, 3, 3)
    torch.testing.assert_close(fit_channels(weight, after, "repeat"), slow_repeat(weight, after))
    everywhere = weight.sum(dim=1, keepdim=True) / after
    torch.testing.assert_close(fit_channels(weight, after, "mean"), everywhere.expand(-1, after, -1, -1))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2)])
def test_networks_keep_their_features_across_channels(kind: str, before: int, after: int) -> None:
    source, target = NETWORKS[kind](channels=before), NETWORKS[kind](channels=after, seed=1)
    spatial = (16,) * (2 if "2d" in kind else 3)
    image = torch.randn(1, 1, *spatial)
    report = load(source.state_dict(), target)
    assert f"stem: {before} -> {after} channels by repeat" in report.notes
    assert report.groups["stem"].adapted > 0
    repeated = [image.repeat(1, n, *(1,) * len(spatial)) for n in (before, after)]
    torch.testing.assert_close(encoded(target, repeated[1]), encoded(source, repeated[0]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", NETWORKS)
def test_random_leaves_the_stem_fresh_only_when_channels_differ(kind: str) -> None:
    target = NETWORKS[kind](channels=2, seed=1)
    fresh = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    report = load(NETWORKS[kind]().state_dict(), target, channels="random")
    assert report.groups["stem"].fresh == report.groups["stem"].in_network > 0
    stem = target.key_to_stem + "."
    assert all(torch.equal(t, fresh[n]) for n, t in target.state_dict().items() if n.startswith(stem))
    assert report.groups["encoder"].fresh == 0
    assert load(NETWORKS[kind]().state_dict(), NETWORKS[kind](seed=1), channels="random").groups["stem"].fresh == 0


# ---- kernels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 1, 3), (1, 1, 3), (1, 1, 1)])
def test_collapsed_kernel_keeps_the_response_to_what_is_constant_there(kernel: tuple[int, int, int]) -> None:
    weight = torch.randn(4, 2, 3, 3, 3)
    image = torch.randn(1, 2, 7, 7, 7)
    for axis, size in enumerate(kernel):
        if size == 1:
            image = image.mean(dim=axis + 2, keepdim=True).expand(1, 2, 7, 7, 7)
    fitted = fit_kernel(weight, kernel)
    assert fitted is not None
    inner = (..., *(slice((3 - size) // 2, (3 - size) // 2 + 5) for size in kernel))
    torch.testing.assert_close(F.conv3d(image, fitted)[inner], F.conv3d(image, weight), atol=1e-5, rtol=1e-4)


def test_volume_kernel_for_slices() -> None:
    weight, image = torch.randn(4, 2, 3, 3, 3), torch.randn(1, 2, 1, 7, 7).expand(1, 2, 5, 7, 7)
    fitted = fit_kernel(weight, (3, 3))
    assert fitted is not None
    slices = F.conv2d(image[:, :, 2], fitted)
    torch.testing.assert_close(slices, F.conv3d(image, weight)[:, :, 1], atol=1e-5, rtol=1e-4)


def test_larger_kernel_gives_the_same_response() -> None:
    weight, image = torch.randn(4, 2, 3, 1, 3), torch.randn(1, 2, 9, 9, 9)
    fitted = fit_kernel(weight, (5, 3, 3))
    assert fitted is not None
    assert fitted.shape == (4, 2, 5, 3, 3)
    torch.testing.assert_close(
        F.conv3d(image, fitted, padding=(2, 1, 1)), F.conv3d(image, weight, padding=(1, 0, 1)), atol=1e-5, rtol=1e-4
    )


def test_kernels_without_a_common_centre_do_not_fit() -> None:
    assert fit_kernel(torch.randn(4, 2, 3, 3, 3), (4, 3, 3)) is None
    assert fit_kernel(torch.randn(4, 2, 5, 5, 5), (3, 3, 3)) is None
    assert fit_kernel(torch.randn(4, 2, 3, 3), (3, 3, 3)) is None


@pytest.mark.parametrize("plain", [False, True])
def test_anisotropic_network(plain: bool) -> None:
    source = unet(plain=plain)
    target = unet(plain=plain, kernels=[[1, 3, 3], [3, 3, 3], [3, 3, 3]], seed=1)
    report = load(source.state_dict(), target)
    assert all_from_checkpoint(report)
    assert any("kernels 3x3x3 -> 1x3x3" in note for note in report.notes)
    name = next(n for n in target.state_dict() if n.startswith("encoder.stages.0") and n.endswith("conv.weight"))
    torch.testing.assert_close(target.state_dict()[name], source.state_dict()[name].sum(dim=2, keepdim=True))


def test_volume_network_for_slices() -> None:
    source, target = unet(), unet(ndim=2, seed=1)
    report = load(source.state_dict(), target, transfer="encoder+decoder")
    assert all_from_checkpoint(report)
    assert any("kernels 3x3x3 -> 3x3" in note for note in report.notes)
    # transposed convolutions share no voxels between outputs: summing them would change the response
    assert any(r.group == "decoder" and "transpconvs" in r.example for r in report.reasons)


# ---- sizes -------------------------------------------------------------------------------------------------------------


def test_deeper_network_gets_what_the_checkpoint_has() -> None:
    source, target = unet(features=(4, 8, 8)), unet(features=(4, 8, 8, 8), seed=1)
    report = load(source.state_dict(), target)
    assert 0.5 < report.encoder_fraction < 1
    assert [(r.group, r.reason) for r in report.reasons if r.group == "encoder"] == [
        ("encoder", "not in the checkpoint")
    ]
    assert torch.equal(
        target.encoder.stages[2].blocks[0].conv1.conv.weight, source.encoder.stages[2].blocks[0].conv1.conv.weight
    )


def test_wider_network_gets_no_partial_copies() -> None:
    source, target = unet(features=(4, 8, 8)), unet(features=(4, 8, 16), seed=1)
    fresh = target.encoder.stages[2].blocks[0].conv1.conv.weight.clone()
    report = load(source.state_dict(), target)
    assert torch.equal(target.encoder.stages[2].blocks[0].conv1.conv.weight, fresh)
    assert torch.equal(
        target.encoder.stages[1].blocks[0].conv1.conv.weight, source.encoder.stages[1].blocks[0].conv1.conv.weight
    )
    assert any("checkpoint (8, 8, 3, 3, 3), network (16, 8, 3, 3, 3)" in r.reason for r in report.reasons)
    assert report.groups["encoder"].left_out > 0
    with pytest.raises(CheckpointError, match=r"features per stage: checkpoint \(4, 8, 8\), network \(4, 8, 16\)"):
        report.raise_if_poor(minimum=0.9)


@pytest.mark.parametrize("token", [4, 16])
def test_other_token_size_is_not_squeezed_into_the_stem(token: int) -> None:
    report = load(primus(token=8).state_dict(), primus(shape=(2 * token,) * 3, token=token, seed=1))
    reasons = [r.reason for r in report.reasons if r.group == "stem" and r.example.endswith("weight")]
    assert reasons == [f"token size 8x8x8 -> {token}x{token}x{token}"]
    assert report.groups["encoder"].fresh == 0


def test_unusable_checkpoint_names_reason_and_next_command() -> None:
    state, report = adapt(unet().state_dict(), unet(plain=True, seed=1), source_info={"planner": "SSLPlannerResEncL"})
    assert report.encoder_fraction < 0.5
    with pytest.raises(CheckpointError) as caught:
        report.raise_if_poor()
    for part in (
        "holds ResidualEncoderUNet",
        "network is PlainConvUNet",
        "nnUNetv2_plan_finetune",
    ):
        assert part in str(caught.value)
    assert "What to do: Plan with the architecture" in report.table()
    report.raise_if_poor(minimum=0.0)
    assert set(state) == set(unet(plain=True).state_dict())


def test_table_is_aligned_and_complete() -> None:
    _, report = adapt(unet().state_dict(), unet(channels=3, seed=1))
    report.raise_if_poor()
    lines = report.table().splitlines()
    table = [line for line in lines if line.split("  ")[0] in ("parameters", *report.groups)]
    assert len({len(line) for line in table}) == 1
    assert [line.split()[0] for line in table] == ["parameters", "stem", "encoder", "decoder", "heads"]
    assert "100.0% of the encoder's parameters come from the checkpoint." in lines
    assert "- stem: 1 -> 3 channels by repeat" in lines
    assert "What to do" not in report.table()


# ---- position embedding ------------------------------------------------------------------------------------------------


def slow_linear_resize(grid: Tensor, target: Sequence[int]) -> Tensor:
    """Linear interpolation between token centres, value by value, for a grid [*source, C]."""
    source = grid.shape[:-1]
    result = torch.zeros(*target, grid.shape[-1], dtype=grid.dtype)
    for place in product(*map(range, target)):
        corners = []
        for axis, index in enumerate(place):
            position = (index + 0.5) * source[axis] / target[axis] - 0.5
            position = min(max(position, 0.0), source[axis] - 1.0)
            low = int(position)
            high = min(low + 1, source[axis] - 1)
            corners.append([(low, 1 - (position - low)), (high, position - low)])
        for corner in product(*corners):
            share = 1.0
            for _, part in corner:
                share *= part
            result[place] += share * grid[tuple(index for index, _ in corner)]
    return result


@pytest.mark.parametrize(
    ("source", "target"),
    [((2, 2, 2), (3, 4, 2)), ((5, 2, 3), (2, 4, 3)), ((3, 1, 2), (1, 2, 5)), ((3, 2), (5, 4))],
)
def test_position_embedding_against_its_slow_version(source: Sequence[int], target: Sequence[int]) -> None:
    grid = torch.randn(*source, 6)
    resized = resize_position_embedding(grid.flatten(0, -2)[None], source, target)
    expected = slow_linear_resize(grid, target).flatten(0, -2)[None]
    torch.testing.assert_close(resized, expected, atol=1e-5, rtol=1e-5)


def test_primus_of_another_patch_size() -> None:
    source, target = primus(shape=(16, 24, 16)), primus(shape=(24, 16, 32), seed=1)
    report = load(source.state_dict(), target, source_patch_size=(16, 24, 16), target_patch_size=(24, 16, 32))
    assert "position embedding: 2x3x2 -> 3x2x4 tokens" in report.notes
    assert report.groups["position embedding"].adapted == 3 * 2 * 4 * 24
    expected = slow_linear_resize(source.eva.pos_embed.detach().reshape(2, 3, 2, 24), (3, 2, 4)).reshape(1, 24, 24)
    torch.testing.assert_close(target.eva.pos_embed.detach(), expected, atol=1e-5, rtol=1e-5)


def test_equal_count_on_another_grid_is_interpolated() -> None:
    source, target = primus(shape=(16, 32, 16)), primus(shape=(32, 16, 16), seed=1)
    load(source.state_dict(), target, source_patch_size=(16, 32, 16))
    expected = slow_linear_resize(source.eva.pos_embed.detach().reshape(2, 4, 2, 24), (4, 2, 2)).reshape(1, 16, 24)
    torch.testing.assert_close(target.eva.pos_embed.detach(), expected, atol=1e-5, rtol=1e-5)


def test_unknown_source_patch_size() -> None:
    target = primus(shape=(24, 16, 16), seed=1)
    report = load(primus(shape=(16, 16, 16)).state_dict(), target)
    assert "position embedding: 2x2x2 -> 3x2x2 tokens" in report.notes
    with pytest.raises(CheckpointError, match=r"18 position embeddings is unknown.*source_patch_size"):
        adapt(primus(shape=(16, 24, 24)).state_dict(), target)
    with pytest.raises(CheckpointError, match=r"not a patch of \(40, 40, 40\)"):
        adapt(primus(shape=(16, 24, 24)).state_dict(), target, source_patch_size=(40, 40, 40))
    same = primus(shape=(24, 16, 16))
    assert "position embedding: token grid unknown, taken as 3x2x2" in load(same.state_dict(), target).notes
    assert torch.equal(same.eva.pos_embed, target.eva.pos_embed)


# ---- refusals ----------------------------------------------------------------------------------------------------------


def test_unknown_options_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"one of encoder, encoder\+decoder, found 'all'"):
        adapt({"a": torch.zeros(1)}, unet(), transfer="all")
    with pytest.raises(ValueError, match="one of repeat, mean, by_name, random, found 'copy'"):
        adapt({"a": torch.zeros(1)}, unet(), channels="copy")


def test_network_that_does_not_say_where_its_encoder_is() -> None:
    with pytest.raises(CheckpointError, match="Linear does not say where its encoder is"):
        adapt({"a": torch.zeros(1)}, nn.Linear(1, 1))


def test_diverged_checkpoint_is_refused() -> None:
    weights = unet().state_dict()
    weights["encoder.stem.convs.0.all_modules.0.weight"] = torch.full((4, 1, 3, 3, 3), float("nan"))
    with pytest.raises(CheckpointError, match=r"encoder\.stem\.convs\.0\.conv\.weight .* NaN"):
        adapt(weights, unet(seed=1))


def test_half_precision_weights_arrive_in_the_networks_type() -> None:
    target = unet(seed=1)
    load({n: t.half() for n, t in unet().state_dict().items()}, target)
    state, _ = adapt({n: t.half() for n, t in unet().state_dict().items()}, target)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_own_checkpoint_needs_nothing_else() -> None:
    source, target = primus(shape=(16, 24, 16)), primus(channels=2, shape=(24, 16, 16), seed=1)
    checkpoint = {
        "network_weights": source.state_dict(),
        "ssl": {"method": "mae", "patch_size": [16, 24, 16], "token_order": "natural", "backbone": "primus"},
        "trainer_name": "SSLMAETrainer",
    }
    _, report = adapt_checkpoint(checkpoint, target)
    assert report.transfer == "encoder"
    assert "position embedding: 2x3x2 -> 3x2x2 tokens" in report.notes
    assert not any("token order" in note for note in report.notes)


# ---- channels by name --------------------------------------------------------------------------------------------------


def adapt_by_name(
    source: nn.Module, target: nn.Module, have: Sequence[str] | None, want: Sequence[str] | None
) -> TransferReport:
    info = {"channel_names": have}
    return load(source.state_dict(), target, channels="by_name", target_channel_names=want, source_info=info)


@pytest.mark.parametrize("kind", NETWORKS)
def test_channels_find_their_names(kind: str) -> None:
    """Another order of the same channels: fed in their order, the network computes what it did."""
    source, target = NETWORKS[kind](channels=3), NETWORKS[kind](channels=3, seed=1)
    report = adapt_by_name(source, target, ["T1", "T2", "FLAIR"], ["flair", " t1 ", "T2"])
    image = torch.randn(1, 3, *(16,) * (2 if "2d" in kind else 3))
    torch.testing.assert_close(encoded(target, image[:, [2, 0, 1]]), encoded(source, image), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(encoded(target, image), encoded(source, image), atol=1e-3)
    assert report.groups["stem"].adapted > 0
    assert "stem, by name: flair from FLAIR" in report.notes


@pytest.mark.parametrize("want", [["T2", "CT", "PET"], ["CT", "FLAIR", "T2"]])
def test_one_image_in_all_of_equally_many_channels_gives_the_same(want: list[str]) -> None:
    source, target = unet(channels=3), unet(channels=3, seed=1)
    adapt_by_name(source, target, ["T1", "T2", "FLAIR"], want)
    image = torch.randn(1, 1, 16, 16, 16).repeat(1, 3, 1, 1, 1)
    torch.testing.assert_close(encoded(target, image), encoded(source, image), atol=1e-5, rtol=1e-4)


def test_channels_without_a_name_of_their_own_get_the_mean() -> None:
    source, target = unet(channels=2), unet(channels=3, seed=1)
    report = adapt_by_name(source, target, ["T1", "T2"], ["T2", "PET", "T1"])
    before, after = (n.encoder.stem.convs[0].conv.weight for n in (source, target))
    torch.testing.assert_close(after, torch.stack([before[:, 1], before.mean(dim=1), before[:, 0]], dim=1))
    assert "stem, by name: PET (not in the checkpoint) from the mean of T1, T2" in report.notes
    smaller = unet(channels=1, seed=2)
    report = adapt_by_name(source, smaller, ["T1", "T2"], ["T2"])
    torch.testing.assert_close(smaller.encoder.stem.convs[0].conv.weight, before[:, 1:])
    assert "stem, by name: T1 of the checkpoint left out" in report.notes


def test_only_convolutions_that_see_the_image_are_mixed() -> None:
    """With as many features as channels, the stem's inner convolutions have the image's shape."""
    source, target = unet(channels=4, plain=True), unet(channels=4, plain=True, seed=1)
    names = ["a", "b", "c", "d"]
    adapt_by_name(source, target, names, names[::-1])
    first, second = (f"encoder.stages.0.0.convs.{n}.conv.weight" for n in (0, 1))
    assert torch.equal(target.state_dict()[first], source.state_dict()[first].flip(1))
    assert torch.equal(target.state_dict()[second], source.state_dict()[second])


@pytest.mark.parametrize(
    ("have", "want", "match"),
    [
        (None, ["T1"], "The checkpoint does not name its channels"),
        (["T1", "T2"], ["T1"], r"The checkpoint names 2 channels \(T1, T2\), but its network has 1"),
        (["T1"], None, "The data set does not name its channels"),
        (["T1"], ["CT"], r"No channel name of the data set \(CT\) is among the checkpoint's \(T1\)"),
    ],
)
def test_names_that_do_not_tell(have: list[str] | None, want: list[str] | None, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        adapt_by_name(unet(), unet(seed=1), have, want)


def test_names_come_from_the_checkpoint_of_nnunet() -> None:
    arguments = {"dataset_json": {"channel_names": {"1": "T2", "0": "T1"}}}
    checkpoint = {"network_weights": unet(channels=2).state_dict(), "init_args": arguments}
    state, report = adapt_checkpoint(
        checkpoint, unet(channels=2, seed=1), channels="by_name", target_channel_names=("T2", "T1")
    )
    name = "encoder.stem.convs.0.conv.weight"
    assert torch.equal(state[name], checkpoint["network_weights"][name].flip(1))
    assert report.source_info["channel_names"] == ["T1", "T2"]


# ---- other sizes ---------------------------------------------------------------------------------------------------------


def test_shallower_network_gets_the_first_stages() -> None:
    source, target = unet(features=(4, 8, 8, 8)), unet(features=(4, 8, 8), seed=1)
    report = load(source.state_dict(), target)
    assert all_from_checkpoint(report)
    assert report.groups["encoder"].left_out == sum(p.numel() for p in source.encoder.stages[3].parameters())
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(target.encoder(image)[-1], source.encoder(image)[2])


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2)])
def test_primus_of_another_depth_gets_the_first_blocks(before: int, after: int) -> None:
    def of_depth(depth: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Primus(1, 24, (8,) * 3, 2, eva_depth=depth, eva_numheads=2, input_shape=(16,) * 3).eval()

    source, target = of_depth(before, 0), of_depth(after, 1)
    report = load(source.state_dict(), target)
    for number in range(min(before, after)):
        for name, tensor in target.eva.blocks[number].state_dict().items():
            assert torch.equal(tensor, source.eva.blocks[number].state_dict()[name])
    assert (report.groups["encoder"].fresh > 0) is (after > before)
    assert (report.groups["encoder"].left_out > 0) is (after < before)
    with pytest.raises(CheckpointError, match=f"depth: checkpoint {before}, network {after}"):
        report.raise_if_poor(minimum=1.01)


def test_wider_transformer_gets_nothing_and_says_why() -> None:
    report = load(primus(width=24).state_dict(), primus(width=48, seed=1))
    assert report.encoder_fraction == 0.0
    with pytest.raises(CheckpointError, match="width: checkpoint 24, network 48"):
        report.raise_if_poor()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("before", "images", "labels"), [(1, 1, 2), (3, 1, 2), (2, 2, 3), (1, 2, 1)])
@pytest.mark.parametrize("channels", ["repeat", "mean", "by_name"])
def test_a_cascade_sees_the_image_as_before_and_nothing_of_the_labels(
    kind: str, before: int, images: int, labels: int, channels: str
) -> None:
    """Labels of the previous stage are further input channels; 3 -> 1 + 2 has equal shapes by accident."""
    ndim = 2 if "2d" in kind else 3
    source, target = NETWORKS[kind](channels=before, seed=0), NETWORKS[kind](channels=images + labels, seed=1)
    names = ["T1", "T2", "FLAIR"]
    report = load(
        source.state_dict(),
        target,
        channels=channels,
        image_channels=images,
        target_channel_names=names[:images],
        source_info={"channel_names": names[:before]},
    )
    size = (16,) * ndim
    one = torch.randn(1, 1, *size)
    inputs = torch.cat([one.expand(1, images, *size), torch.randint(0, 2, (1, labels, *size)).float()], dim=1)
    plain = NETWORKS[kind](channels=images, seed=2)
    load(
        source.state_dict(),
        plain,
        channels=channels,
        target_channel_names=names[:images],
        source_info={"channel_names": names[:before]},
    )
    torch.testing.assert_close(encoded(target, inputs), encoded(plain, one.expand(1, images, *size)))
    stems = [name for name in report.fresh_in_encoder() if target.get_parameter(name).shape[1] == images + labels]
    assert stems, "labels would stay frozen at 0"
    assert set(stems) <= dict(target.named_parameters()).keys()
    assert any("labels of the previous stage" in note for note in report.notes)
