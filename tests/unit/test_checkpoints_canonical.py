"""Reading nnssl's own checkpoints: every weight arrives, and the networks give nnssl's own outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.eva import Eva
from torch import Tensor, nn

from nnunet_ssl.checkpoints.adaptation.adapt import adapt, adapt_checkpoint
from nnunet_ssl.checkpoints.canonical import canonical_weights
from nnunet_ssl.checkpoints.read import network_weights, read_checkpoint
from nnunet_ssl.errors import CheckpointError

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "reference" / "fixtures"
UNETS = ("BaseMAETrainer", "SparkMAETrainer", "VoCoTrainer", "VolumeFusionTrainer")
PRIMUSES = ("BaseEvaMAETrainer", "SimMIMEvaTrainer", "SwinUNETREvaTrainer")

needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"nnssl checkpoints are not in {FIXTURES}")


def unet(channels: int = 1, classes: int = 2) -> ResidualEncoderUNet:
    return ResidualEncoderUNet(
        channels,
        6,
        [8, 16, 16, 16, 32, 32],
        nn.Conv3d,
        3,
        [1, 2, 2, 2, 2, 2],
        [1] * 6,
        classes,
        [1] * 5,
        True,
        nn.InstanceNorm3d,
        {"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


def primus(channels: int = 1, classes: int = 2, size: int = 64) -> Primus:
    return Primus(
        channels,
        72,
        (8, 8, 8),
        classes,
        eva_depth=2,
        eva_numheads=1,
        input_shape=(size,) * 3,
        init_values=0.1,
        scale_attn_inner=True,
    ).eval()


def checkpoint_of(trainer: str) -> dict[str, Any]:
    return read_checkpoint(FIXTURES / trainer / "checkpoint_tiny.pth")


def input_and_output(trainer: str) -> tuple[Tensor, dict[str, Any]]:
    """The image nnssl was given, and what it recorded; its output is every fourth voxel of every axis."""
    record = torch.load(FIXTURES / trainer / "io_tiny.pt", weights_only=True)
    image = torch.randn(record["input_shape"], generator=torch.Generator().manual_seed(1234))
    assert image.double().sum().item() == pytest.approx(record["input_checksum"])
    return image, record


def upsample(mask: Tensor, factor: int) -> Tensor:
    for axis in (2, 3, 4):
        mask = mask.repeat_interleave(factor, dim=axis)
    return mask


@needs_fixtures
@pytest.mark.parametrize("trainer", UNETS + PRIMUSES)
@pytest.mark.parametrize("channels", [1, 2])
def test_whole_encoder_arrives(trainer: str, channels: int) -> None:
    checkpoint = checkpoint_of(trainer)
    weights, info = canonical_weights(checkpoint)
    assert info["backbone"] == ("primus" if trainer in PRIMUSES else "unet")
    assert info["patch_size"] == (None if trainer == "SparkMAETrainer" else [64, 64, 64])  # SparK has no plan
    assert info["num_input_channels"] == 1
    target = primus(channels) if trainer in PRIMUSES else unet(channels)
    state, report = adapt(weights, target, source_info=info)
    target.load_state_dict(state, strict=True)
    assert report.encoder_fraction == 1.0
    assert sum(report.groups[g].left_out for g in ("stem", "encoder", "position embedding")) == 0
    again, _ = adapt_checkpoint(checkpoint, target, transfer="encoder")
    assert all(torch.equal(state[name], again[name]) for name in state)


@needs_fixtures
@pytest.mark.parametrize(
    ("trainer", "method", "transfer"),
    [
        ("BaseMAETrainer", "mae", "encoder"),
        ("BaseEvaMAETrainer", "mae", "encoder"),
        ("SimMIMEvaTrainer", "simmim", "encoder"),
        ("SparkMAETrainer", "spark3d", "encoder+decoder"),
        ("SwinUNETREvaTrainer", "swin_unetr", "encoder"),
        ("VoCoTrainer", "voco", "encoder"),
        ("VolumeFusionTrainer", "volume_fusion", "encoder"),
    ],
)
def test_method_is_recognised(trainer: str, method: str, transfer: str) -> None:
    _, info = canonical_weights(checkpoint_of(trainer))
    assert (info["method"], info["transfer"]) == (method, transfer)


@needs_fixtures
def test_spark_weights_are_the_trained_ones() -> None:
    """SparK's own full module is in the file as well: the dense network must get the tensors it ran."""
    checkpoint = checkpoint_of("SparkMAETrainer")
    weights, _ = canonical_weights(checkpoint)
    raw = network_weights(checkpoint)
    name = "encoder.stem.convs.0"
    assert not torch.equal(raw[f"{name}.conv.weight"], raw[f"{name}.all_modules.0.weight"])
    assert torch.equal(weights[f"{name}.conv.weight"], raw[f"{name}.all_modules.0.weight"])
    assert torch.equal(weights[f"{name}.norm.bias"], raw[f"{name}.all_modules.1.bias"])
    dense = unet(classes=1)
    dense.load_state_dict(raw)  # strict loading writes all_modules last, so it wins there too
    _, report = adapt_checkpoint(checkpoint, unet(classes=1))
    assert report.groups["decoder"].fresh == 0
    assert all(torch.equal(weights[n], t) for n, t in dense.state_dict().items())


@needs_fixtures
def test_volume_fusion_output_is_nnssls() -> None:
    image, record = input_and_output("VolumeFusionTrainer")
    network = unet(classes=5)
    network.load_state_dict(canonical_weights(checkpoint_of("VolumeFusionTrainer"))[0])
    with torch.no_grad():
        torch.testing.assert_close(network(image)[..., ::4, ::4, ::4], record["out"], atol=1e-5, rtol=1e-4)


@needs_fixtures
def test_mae_output_is_nnssls() -> None:
    image, record = input_and_output("BaseMAETrainer")
    network = unet(classes=1)
    network.load_state_dict(canonical_weights(checkpoint_of("BaseMAETrainer"))[0])
    visible = upsample(record["mask"].float(), 16)  # nnssl's masks are 1 where visible
    with torch.no_grad():
        torch.testing.assert_close(network(image * visible)[..., ::4, ::4, ::4], record["out"], atol=1e-5, rtol=1e-4)


@needs_fixtures
def test_simmim_output_is_nnssls() -> None:
    image, record = input_and_output("SimMIMEvaTrainer")
    weights, info = canonical_weights(checkpoint_of("SimMIMEvaTrainer"))
    assert not info["notes"], "SimMIM's tokens are in natural order already"
    network = primus(classes=1)
    network.load_state_dict(weights)
    visible = record["mask"].float().flatten(1).unsqueeze(-1)
    with torch.no_grad():
        tokens = network.down_projection(image).flatten(2).transpose(1, 2)
        tokens = network.eva(tokens * visible + weights["mask_token"] * (1 - visible))[0]
        out = network.up_projection(tokens.transpose(1, 2).unflatten(2, (8, 8, 8)))
    torch.testing.assert_close(out[..., ::4, ::4, ::4], record["out"], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def masked_autoencoder(weights: dict[str, Tensor], image: Tensor, keep: Tensor) -> Tensor:
    """nnssl's EvaMAE with tokens in natural order; `keep` [B, K] holds natural token indices."""
    decoder_weights = {n.removeprefix("decoder."): t for n, t in weights.items() if n.startswith("decoder.")}
    network = primus(classes=1)
    network.load_state_dict({n: t for n, t in weights.items() if not n.startswith("decoder.")})
    decoder = Eva(72, depth=1, num_heads=1, ref_feat_shape=(8, 8, 8), init_values=0.1, scale_attn_inner=True).eval()
    decoder.load_state_dict(decoder_weights)
    index = keep.unsqueeze(-1).expand(-1, -1, 72)
    tokens = (network.down_projection(image).flatten(2).transpose(1, 2) + network.eva.pos_embed).gather(1, index)
    rope = network.eva.rope.get_embed()[keep].unsqueeze(1)
    for block in network.eva.blocks:
        tokens = block(tokens, rope=rope)
    full = weights["mask_token"].expand(len(image), 512, -1).scatter(1, index, network.eva.norm(tokens))
    return network.up_projection(decoder(full)[0].transpose(1, 2).unflatten(2, (8, 8, 8)))


@needs_fixtures
def test_primus_mae_output_is_nnssls_only_after_converting_the_token_order() -> None:
    image, record = input_and_output("BaseEvaMAETrainer")
    checkpoint = checkpoint_of("BaseEvaMAETrainer")
    natural = torch.arange(512).view(8, 8, 8).transpose(0, 1).flatten()  # natural index of each swapped position
    keep = natural[record["keep_indices"]]
    weights, info = canonical_weights(checkpoint)
    assert any("token order" in note for note in info["notes"])
    out = masked_autoencoder(weights, image, keep)[..., ::4, ::4, ::4]
    torch.testing.assert_close(out, record["out"], atol=1e-5, rtol=1e-4)
    unconverted = masked_autoencoder(network_weights(checkpoint), image, keep)[..., ::4, ::4, ::4]
    assert (unconverted - record["out"]).abs().max() > 0.1


@needs_fixtures
def test_new_patch_size_and_channels_of_a_foreign_checkpoint() -> None:
    target = primus(channels=3, classes=4, size=32)
    state, report = adapt_checkpoint(checkpoint_of("SwinUNETREvaTrainer"), target)
    target.load_state_dict(state)
    assert report.encoder_fraction == 1.0
    assert "position embedding: 8x8x8 -> 4x4x4 tokens" in report.notes
    assert "stem: 1 -> 3 channels by repeat" in report.notes


@needs_fixtures
def test_wrong_architecture_names_the_command_that_plans_the_right_one() -> None:
    _, report = adapt_checkpoint(checkpoint_of("BaseEvaMAETrainer"), unet())
    with pytest.raises(CheckpointError, match=r"holds Primus \(width 72.*nnUNetv2_plan_finetune -d DATASET_ID"):
        report.raise_if_poor()


def eva_checkpoint(architecture: dict[str, Any], heads: int = 2, width: int = 24) -> dict[str, Any]:
    network = Primus(
        1, width, (8, 8, 8), 1, eva_depth=1, eva_numheads=heads, input_shape=(16, 16, 16), scale_attn_inner=True
    )
    return {
        "network_weights": {f"encoder.{n}": t for n, t in network.state_dict().items()},
        "trainer_name": "VoCoEvaTrainer",
        "nnssl_adaptation_plan": {"architecture_plans": architecture},
    }


def test_number_of_heads_is_found_or_asked_for() -> None:
    unknown = eva_checkpoint({"arch_class_name": "Primus", "arch_kwargs": None})
    with pytest.raises(CheckpointError, match="how many attention heads its Primus of width 24"):
        canonical_weights(unknown)
    stated = eva_checkpoint({"arch_class_name": "Primus", "arch_kwargs": {"eva_numheads": 2}})
    stated["network_weights"] = unknown["network_weights"]
    by_plan, by_argument = canonical_weights(stated)[0], canonical_weights(unknown, num_heads=2)[0]
    assert all(torch.equal(by_plan[name], by_argument[name]) for name in by_plan)
    raw = unknown["network_weights"]["encoder.eva.blocks.0.attn.q_proj.weight"]
    in_heads = by_plan["eva.blocks.0.attn.q_proj.weight"].view(2, 3, 4, 24)
    assert torch.equal(in_heads[:, [1, 0, 2]].view(24, 24), raw)


def test_stock_nnunet_checkpoint_tells_patch_size_and_planner() -> None:
    checkpoint = {
        "network_weights": unet(channels=2).state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {
            "configuration": "3d_fullres",
            "plans": {
                "experiment_planner_used": "nnUNetPlannerResEncL",
                "configurations": {
                    "3d_fullres": {
                        "patch_size": [64, 64, 32],
                        "architecture": {"network_class_name": "a.b.ResidualEncoderUNet"},
                    }
                },
            },
        },
    }
    _, info = canonical_weights(checkpoint)
    assert info == {
        "patch_size": [64, 64, 32],
        "num_input_channels": 2,
        "channel_names": None,
        "method": None,
        "stem": None,
        "stems": [],
        "backbone": "unet",
        "architecture": "ResidualEncoderUNet",
        "planner": "nnUNetPlannerResEncL",
        "transfer": "encoder",
        "notes": [],
    }
