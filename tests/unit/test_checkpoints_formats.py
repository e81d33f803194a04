"""One small checkpoint per format: recognised by looking inside, transferred in full, reported as what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from safetensors.torch import save_file
from torch import Tensor, nn

from nnunet_ssl.checkpoints.adaptation.adapt import adapt_checkpoint
from nnunet_ssl.checkpoints.adaptation.report import TransferReport
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.checkpoints.token_order import to_natural_order
from nnunet_ssl.errors import CheckpointError

PATCH = [16, 16, 16]
GRID = (2, 2, 2)
Weights = dict[str, Tensor]


def unet(classes: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    norm = (nn.InstanceNorm3d, {"eps": 1e-5, "affine": True})
    network = (nn.Conv3d, 3, [1, 2, 2], [1, 1, 1], classes, [1, 1], True, *norm)
    return ResidualEncoderUNet(1, 3, [4, 8, 8], *network, nonlin=nn.LeakyReLU)


def primus(classes: int = 2, seed: int = 0, layer_scale: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    scale = {"init_values": 0.1, "scale_attn_inner": True} if layer_scale else {"scale_attn_inner": True}
    return Primus(1, 24, (8,) * 3, classes, eva_depth=2, eva_numheads=2, input_shape=PATCH, **scale).eval()


def weights_of(network: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def plan(architecture: str, patch: list[int] | None = None, **kwargs: Any) -> dict[str, Any]:
    return {
        "architecture_plans": {"arch_class_name": architecture, "arch_kwargs": kwargs or None},
        "pretrain_plan": {"configurations": {"onemmiso": {"patch_size": patch or PATCH, "spacing": [1, 1, 1]}}},
        "pretrain_num_input_channels": 1,
    }


def under(prefix: str, weights: Mapping[str, Tensor], *starts: str) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items() if name.startswith(starts or "")}


def with_stale_aliases(weights: Weights) -> Weights:
    """Spark's files: what was trained is under `all_modules`, `conv` and `norm` are as they were drawn."""
    stale = [n for n in weights if ".all_modules." not in n and (".conv." in n or ".norm." in n)]
    return weights | {name: torch.full_like(weights[name], 9.0) for name in stale}


def swapped(weights: Weights) -> Weights:
    """As nnssl's EvaMAE family would have it; the exchange is its own inverse on a cube."""
    return to_natural_order(weights, GRID, 2)


U, P = weights_of(unet()), weights_of(primus())
HEADS = {"projector.layer1.0.weight": torch.zeros(3, 5), "rotation_proj_head.bias": torch.zeros(4)}
MAE_DECODER = under("decoder.", P, "x") | {
    "decoder.pos_embed": torch.zeros(1, 8, 24),
    "mask_token": torch.zeros(1, 1, 24),
}
NNUNET = {
    "plans": {
        "configurations": {
            "3d_fullres": {"patch_size": PATCH, "architecture": {"network_class_name": "a.ResidualEncoderUNet"}}
        },
        "experiment_planner_used": "nnUNetPlannerResEncL",
    },
    "configuration": "3d_fullres",
    "dataset_json": {"channel_names": {"0": "T1"}},
}
EVA = plan("PrimusM", eva_numheads=2)
CONVERTED = "token order: nnssl's (A1, A0, A2) converted to natural order (A0, A1, A2)"
UNKNOWN = "token order: not stated by the checkpoint, taken as natural (A0, A1, A2)"

# name -> content, which of the two networks is in it, method, transfer, notes
FORMATS: dict[str, tuple[Mapping[str, Any], str, str | None, str, list[str]]] = {
    "ours, U-Net": (
        {"network_weights": U, "ssl": {"method": "voco", "patch_size": PATCH}, "trainer_name": "SSLVoCoTrainer"},
        *("unet", "voco", "encoder", []),
    ),
    "ours, Primus": (
        {"network_weights": P, "ssl": {"method": "mae", "patch_size": PATCH, "token_order": "natural"}},
        *("primus", "mae", "encoder", []),
    ),
    "nnU-Net, final": (
        {"network_weights": U, "trainer_name": "nnUNetTrainer", "init_args": NNUNET, "optimizer_state": {"state": {}}},
        *("unet", None, "encoder", []),
    ),
    "nnU-Net, best": (
        {
            "network_weights": U,
            "trainer_name": "nnUNetTrainer",
            "init_args": NNUNET,
            "_best_ema": 0.5,
            "current_epoch": 9,
        },
        *("unet", None, "encoder", []),
    ),
    "nnssl, raw": (
        {
            "network_weights": U,
            "trainer_name": "BaseMAETrainer",
            "nnssl_adaptation_plan": plan("ResEncL"),
            "logging": {},
        },
        *("unet", "mae", "encoder", []),
    ),
    "nnssl, published": (
        {
            "network_weights": U,
            "trainer_name": "VolumeFusionTrainer_BS8",
            "nnssl_adaptation_plan": plan("ResEncL"),
            "citations": [{"type": "Architecture", "apa_citations": ["A"]}],
        },
        *("unet", "volume_fusion", "encoder", []),
    ),
    "nnssl, Models Genesis": (
        {"network_weights": U, "trainer_name": "ModelGenesisTrainer", "nnssl_adaptation_plan": plan("ResEncL")},
        *("unet", "models_genesis", "encoder", []),
    ),
    "nnssl, Spark": (
        {"network_weights": with_stale_aliases(U), "spark_weights": U, "trainer_name": "SparkMAETrainer"},
        *("unet", "spark3d", "encoder+decoder", []),
    ),
    "nnssl, EvaMAE": (
        {
            "network_weights": swapped(P) | MAE_DECODER,
            "trainer_name": "BaseEvaMAETrainer_BS8",
            "nnssl_adaptation_plan": EVA,
        },
        *("primus", "mae", "encoder", [CONVERTED]),
    ),
    "nnssl, SimMIM": (
        {"network_weights": P, "trainer_name": "SimMIMEvaTrainer", "nnssl_adaptation_plan": EVA},
        *("primus", "simmim", "encoder", []),
    ),
    "nnssl, VoCo": (
        {
            "network_weights": under("", U, "encoder.") | HEADS,
            "trainer_name": "VoCoTrainer",
            "nnssl_adaptation_plan": plan("ResEncL"),
        },
        *("unet", "voco", "encoder", []),
    ),
    "nnssl, SimCLR": (
        {"network_weights": under("", U, "encoder.") | HEADS, "trainer_name": "SimCLRTrainer"},
        *("unet", "simclr", "encoder", []),
    ),
    "nnssl, VoCo with Primus": (
        {
            "network_weights": under("encoder.", swapped(P), "eva.", "down_projection.") | HEADS,
            "trainer_name": "VoCoEvaTrainer",
            "nnssl_adaptation_plan": EVA,
        },
        *("primus", "voco", "encoder", [CONVERTED]),
    ),
    "nnssl, SwinUNETR with Primus": (
        {
            "network_weights": under("encoder.", swapped(P), "eva.", "down_projection.") | HEADS,
            "trainer_name": "SwinUNETREvaTrainer",
            "nnssl_adaptation_plan": EVA,
        },
        *("primus", "swin_unetr", "encoder", [CONVERTED]),
    ),
    # keys of the released files: network_weights, nnssl_adaptation_plan, citations; no name of a trainer
    "nnFoundation, CNN": (
        {"network_weights": U, "nnssl_adaptation_plan": plan("ResEncL", [192] * 3), "citations": []},
        *("unet", None, "encoder", []),
    ),
    "nnFoundation, ViT": (
        {
            "network_weights": P | MAE_DECODER,
            "nnssl_adaptation_plan": plan("PrimusX", encoder_eva_numheads=2, embed_dim=24),
            "citations": [],
        },
        *("primus", "mae", "encoder", []),
    ),
    "nnFoundation, ViT, raw": (
        {
            "network_weights": P | MAE_DECODER,
            "trainer_name": "BaseEvaMAETrainer_BS96_192ps_2500ep_40_16_8_16_1056_lr2e3",
            "nnssl_adaptation_plan": plan("PrimusX", encoder_eva_numheads=2, embed_dim=24),
        },
        *("primus", "mae", "encoder", []),
    ),
    "DDP and compile": (
        {"state_dict": under("module._orig_mod.", U), "epoch": 3},
        *("unet", None, "encoder", []),
    ),
    "wrapped in another module": ({"model": under("student.backbone.", U)}, *("unet", None, "encoder", [])),
    "bare state dict, U-Net": (U, *("unet", None, "encoder", [])),
    "bare state dict, Primus": (P, *("primus", None, "encoder", [UNKNOWN])),
    "bare encoder": (
        under("", {n.removeprefix("encoder."): t for n, t in U.items() if n.startswith("encoder.")}),
        *("unet", None, "encoder", []),
    ),
}


def transfer(
    content: Mapping[str, Any], network: str, tmp_path: Path, write: Callable[..., Any]
) -> tuple[nn.Module, TransferReport]:
    write(content, tmp_path / "file.pth")
    target = (unet if network == "unet" else primus)(classes=3, seed=1)
    state, report = adapt_checkpoint(read_checkpoint(tmp_path / "file.pth"), target)
    target.load_state_dict(state, strict=True)
    return target, report


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_and_arrives(name: str, tmp_path: Path) -> None:
    content, network, method, expected_transfer, notes = FORMATS[name]
    target, report = transfer(content, network, tmp_path, torch.save)
    assert report.encoder_fraction == 1.0
    assert report.source.family == report.target.family == ("ResidualEncoderUNet" if network == "unet" else "Primus")
    assert (report.source_info["method"], report.transfer) == (method, expected_transfer)
    assert report.notes == notes
    groups = ("stem", "encoder", "position embedding")
    assert all(report.groups[g].fresh == report.groups[g].adapted == report.groups[g].left_out == 0 for g in groups)
    original, prefix = (U, "encoder.") if network == "unet" else (P, "eva.")
    for key, tensor in target.state_dict().items():
        if key.startswith((prefix, "down_projection.")):
            assert torch.equal(tensor, original[key]), key
    decoder = report.groups["decoder"]
    assert (decoder.fresh == 0) is (expected_transfer == "encoder+decoder")
    if "patch_size" in str(content.get("ssl", "")) or "init_args" in content:
        assert report.source_info["patch_size"] == PATCH


def test_the_format_is_told_by_the_content_not_by_the_name(tmp_path: Path) -> None:
    def as_safetensors(content: Mapping[str, Any], path: Path) -> None:
        save_file({n: t.clone() for n, t in content.items()}, path)

    for write in (as_safetensors, lambda c, p: torch.save(c, p, _use_new_zipfile_serialization=False)):
        _, report = transfer(U, "unet", tmp_path, write)
        assert report.encoder_fraction == 1.0
    torch.save(U, tmp_path / "torch.safetensors")
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        read_checkpoint(tmp_path / "torch.safetensors")


def test_swapped_and_natural_order_differ() -> None:
    """Otherwise the notes on token order would say nothing."""
    assert not torch.equal(swapped(P)["eva.pos_embed"], P["eva.pos_embed"])


def test_transformer_without_layer_scale_computes_what_it_did(tmp_path: Path) -> None:
    """nnFoundation's small ViT has none: in a network with it, it is 1."""
    source = primus(layer_scale=False)
    content = {"network_weights": weights_of(source), "nnssl_adaptation_plan": plan("PrimusX", encoder_eva_numheads=2)}
    target, report = transfer(content, "primus", tmp_path, torch.save)
    assert "encoder: the checkpoint has no LayerScale, taken as 1 (what it computed)" in report.notes
    tokens = torch.randn(1, 8, 24)
    with torch.no_grad():
        torch.testing.assert_close(target.eva(tokens)[0], source.eva(tokens)[0])


FOREIGN = {
    "SwinUNETR of MONAI": [
        "swinViT.patch_embed.proj.weight",
        "swinViT.layers1.0.blocks.0.attn.qkv.weight",
        "encoder1.layer.conv1.conv.weight",
    ],
    "VoCo": [
        "module.swinViT.patch_embed.proj.weight",
        "module.swinViT.layers1.0.blocks.0.norm1.weight",
        "proj_head.layer1.0.weight",
    ],
    "nnU-Net version 1": ["conv_blocks_context.0.blocks.0.conv.weight", "tu.0.weight", "seg_outputs.0.weight"],
    "original Models Genesis": ["module.down_tr64.ops.0.conv1.weight", "module.up_tr64.up_conv.weight"],
    "UNETR of MONAI": [
        "vit.patch_embedding.position_embeddings",
        "vit.blocks.0.attn.qkv.weight",
        "encoder1.layer.conv1.conv.weight",
    ],
    "SegResNet of MONAI": ["convInit.conv.weight", "down_layers.0.1.conv1.conv.weight"],
    "images of two axes": ["patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.norm1.weight"],
    "ResNet": ["module.conv1.weight", "module.layer1.0.conv1.weight", "module.layer4.2.bn1.weight"],
    "an unknown architecture": ["a.weight", "b.weight"],
}


@pytest.mark.parametrize("whose", FOREIGN)
@pytest.mark.parametrize("network", ["unet", "primus"])
def test_networks_of_other_programs_are_named_and_refused(whose: str, network: str, tmp_path: Path) -> None:
    content = {"state_dict": {name: torch.zeros(8, 8) for name in FOREIGN[whose]}, "epoch": 3}
    _, report = transfer(content, network, tmp_path, torch.save)
    assert report.encoder_fraction < 0.01
    with pytest.raises(CheckpointError, match=rf"holds .*{whose}.*, the network is .*builds no such network"):
        report.raise_if_poor()
