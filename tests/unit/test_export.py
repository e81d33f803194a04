"""Exported checkpoints: what is in them, what is not, who can load them, and what is never overwritten."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from readers_of_exports import READERS, encoder_of, same_encoder
from torch import nn

from nnunet_ssl.checkpoints.adaptation.adapt import adapt_checkpoint
from nnunet_ssl.checkpoints.adaptation_plan import build_adaptation_plan
from nnunet_ssl.checkpoints.canonical import canonical_weights
from nnunet_ssl.checkpoints.export.downstream import check_loads_downstream, empty_network, load_like_downstream
from nnunet_ssl.checkpoints.export.formats import export_nnssl, export_safetensors
from nnunet_ssl.checkpoints.export.portable import ExportOptions, portable
from nnunet_ssl.checkpoints.export.private import PATH, Scrubber
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.errors import CheckpointError

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "reference" / "fixtures"
PATCH = (16, 24, 16)
UNET = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 16],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "n_blocks_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
PRIMUS = {"embed_dim": 36, "patch_embed_size": [8, 8, 8], "eva_depth": 2, "eva_numheads": 2}
PRIMUS |= {"init_values": 0.1, "scale_attn_inner": True}
IMPORTS = ["conv_op", "norm_op", "dropout_op", "nonlin"]


def unet(channels: int = 1, kind: type[nn.Module] = ResidualEncoderUNet, kwargs: dict[str, Any] = UNET) -> nn.Module:
    layers = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    return kind(channels, num_classes=2, **{**kwargs, **layers})


def primus(channels: int = 1, patch: tuple[int, ...] = PATCH) -> Primus:
    return Primus(channels, num_classes=2, input_shape=patch, **PRIMUS).eval()


def plans_of(network: nn.Module, kwargs: dict[str, Any], patch: tuple[int, ...] = PATCH) -> dict[str, Any]:
    family = "primus" if isinstance(network, Primus) else "unet"
    name = f"dynamic_network_architectures.architectures.{family}.{type(network).__name__}"
    architecture = {"network_class_name": name, "arch_kwargs": kwargs, "_kw_requires_import": []}
    if family == "unet":
        architecture["_kw_requires_import"] = IMPORTS
    settings = {
        "data_identifier": "x",
        "patch_size": list(patch),
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture,
    }
    return {
        "dataset_name": "Dataset777_Tiny",
        "plans_name": "tinyPlans",
        "experiment_planner_used": "SSLPlannerResEncTiny",
        "configurations": {"3d_fullres": settings},
    }


def checkpoint_of(backbone: str) -> dict[str, Any]:
    """What a pre-training writes, with private things in many places."""
    torch.manual_seed(0)
    network = unet() if backbone == "unet" else primus()
    plans = plans_of(network, UNET if backbone == "unet" else PRIMUS)
    secret = "/home/alice/patients/case_0815.nii.gz"
    return {
        "network_weights": network.state_dict(),
        "ssl": {
            "method": "mae",
            "backbone": backbone,
            "token_order": "natural" if backbone == "primus" else None,
            "patch_size": list(PATCH),
            "num_input_channels": 1,
            "config": {"mask_ratio": 0.75},
            "settings": {"datasets": ("Dataset777_Tiny",), "table": secret},
            "heads": {"projector.weight": torch.randn(3, 4)},
            "citations": ["He K. et al. (2022). https://arxiv.org/abs/2111.06377"],
            "licence": None,
        },
        "optimizer_state": {"state": {}},
        "logging": {"train_losses": [1.0, float("nan")], "epoch_start_timestamps": [1.7e9, 1.8e9]},
        "current_epoch": 2,
        "init_args": {
            "plans": {**plans, "pretrain_info": {"checkpoint_path": "C:\\Users\\alice\\x.pth"}},
            "configuration": "3d_fullres",
            "fold": "all",
            "dataset_json": {"channel_names": {"0": "MRI"}, "dataset": {"case_0815": {"images": [secret]}}},
            "device": torch.device("cpu"),
        },
        "trainer_name": "SSLMAETrainer",
        "nnssl_adaptation_plan": build_adaptation_plan(network, plans, "3d_fullres", 1, PATCH),
    }


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("backbone", ["unet", "primus"])
def test_both_formats_carry_the_same_and_give_the_weights_back(backbone: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(backbone)
    export_nnssl(checkpoint, tmp_path / "nnssl")
    export_safetensors(checkpoint, tmp_path / "st")
    pth = read_checkpoint(tmp_path / "nnssl" / "checkpoint_final.pth")
    tensors = read_checkpoint(tmp_path / "st" / "model.safetensors")
    weights, rest = pth.pop("network_weights"), tensors.pop("network_weights")
    assert same(weights, checkpoint["network_weights"])
    assert same(weights, rest)
    assert list(rest) == list(checkpoint["network_weights"])
    assert pth == tensors == json.loads((tmp_path / "st" / "config.json").read_text())
    assert pth["ssl"]["token_order"] == checkpoint["ssl"]["token_order"]
    assert pth["citations"][0]["apa_citations"] == checkpoint["ssl"]["citations"]
    plan = json.loads((tmp_path / "nnssl" / "adaptation_plan.json").read_text())
    assert plan == {**pth["nnssl_adaptation_plan"], "trainer_name": "SSLMAETrainer"}
    network = unet(2) if backbone == "unet" else primus(2, (24, 24, 16))
    reports = [
        adapt_checkpoint({**c, "network_weights": weights}, network, target_patch_size=(24, 24, 16))[1].to_json()
        for c in (checkpoint, pth, tensors)
    ]
    assert reports[0] == reports[1] == reports[2]


def test_aliases_share_their_storage_in_both_formats(tmp_path: Path) -> None:
    """SSL3D_classification finds the copies of the stem by their address; and a file holds every tensor once."""
    checkpoint = checkpoint_of("unet")
    export_nnssl(checkpoint, tmp_path / "nnssl")
    weights = torch.load(tmp_path / "nnssl" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    stem = [n for n in weights if "stem" in n and n.endswith((".conv.weight", ".all_modules.0.weight"))]
    assert len(stem) == 4
    assert len({weights[n].data_ptr() for n in stem}) == 1
    export_safetensors(checkpoint, tmp_path / "st")
    size = sum(t.numel() * 4 for t in {t.data_ptr(): t for t in checkpoint["network_weights"].values()}.values())
    header = 60_000
    assert size < (tmp_path / "st" / "model.safetensors").stat().st_size < size + header


@pytest.mark.parametrize("write", [export_nnssl, export_safetensors])
@pytest.mark.parametrize("keep", [False, True])
def test_nothing_private_is_written(write: Any, keep: bool, tmp_path: Path) -> None:
    made = write(checkpoint_of("unet"), tmp_path / "out", ExportOptions(keep_log=keep, keep_heads=keep))
    content = b"".join(p.read_bytes() for p in (tmp_path / "out").iterdir())
    assert [s for s in (b"alice", b"case_0815", b"/home", b"Users") if s in content] == []
    assert (b"epoch_start_timestamps" in content) is keep
    assert (b"projector.weight" in content) is keep
    written = read_checkpoint(next(p for p in (tmp_path / "out").iterdir() if p.suffix in (".pth", ".safetensors")))
    assert ("heads" in written["ssl"]) is keep
    assert {"ssl.settings.table", "init_args.dataset_json.dataset", "optimizer_state"} <= set(made.removed)
    if keep:
        assert torch.equal(
            written["ssl"]["heads"]["projector.weight"], checkpoint_of("unet")["ssl"]["heads"]["projector.weight"]
        )
        assert written["logging"]["train_losses"] == [1.0, None]


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("/home/alice/x.pth", True),
        ("see /data/alice for more", True),
        ("~/x/y", True),
        ("~alice/x", True),
        ("C:\\Users\\alice", True),
        ("\\\\server\\share\\x", True),
        ("file:///tmp/x", True),
        ("folder=/mnt/x/y", True),
        ("https://arxiv.org/abs/2503.01835", False),
        ("hf://AnonRes/ResEncL-OpenMind-MAE", False),
        ("AnonRes/ResEncL-OpenMind-MAE", False),
        ("(A1, A0, A2) / 1/2", False),
        ("torch.nn.modules.conv.Conv3d", False),
        ('modality in ("T1w","T2w") and iqs <= 2.5', False),
    ],
)
def test_what_counts_as_a_path(text: str, private: bool) -> None:
    assert (PATH.search(text) is not None) is private
    scrub = Scrubber()
    assert scrub({"a": text, text: 1, "b": [text, 1]}) == (
        {"b": [1]} if private else {"a": text, text: 1, "b": [text, 1]}
    )
    assert len(scrub.removed) == (3 if private else 0)


@pytest.mark.parametrize("backbone", ["unet", "primus"])
@pytest.mark.parametrize(("channels", "patch"), [(1, PATCH), (3, PATCH), (1, (24, 16, 32)), (2, (32, 32, 16))])
def test_others_load_what_we_would_load(backbone: str, channels: int, patch: tuple[int, ...]) -> None:
    """Their way, from the format's description, against our own adaptation: the same encoder."""
    checkpoint = portable(checkpoint_of(backbone)).checkpoint
    network = unet(channels) if backbone == "unet" else primus(channels, patch)
    expected, _ = adapt_checkpoint(checkpoint, network, target_patch_size=patch)
    load_like_downstream(checkpoint, network, channels, patch)
    loaded = network.state_dict()
    prefixes = (network.key_to_encoder, network.key_to_stem)
    names = [n for n in loaded if n.startswith(prefixes)]
    assert len(names) > 20
    for name in names:
        torch.testing.assert_close(loaded[name], expected[name], rtol=0, atol=1e-6)
    with torch.no_grad():
        network(torch.zeros(1, channels, *patch))


@pytest.mark.parametrize("reader", list(READERS))
@pytest.mark.parametrize("backbone", ["ResidualEncoderUNet", "PlainConvUNet", "Primus", "PrimusX"])
def test_every_reader_finds_all_of_the_encoder(reader: str, backbone: str) -> None:
    """The rules of other programs, on an export of every kind of network; PrimusX: a file of nnssl's, given on."""
    if (reader, backbone) == ("nnDetection", "PlainConvUNet"):
        pytest.skip("nnDetection knows no PlainConvUNet")
    checkpoint = checkpoint_of("unet" if "UNet" in backbone else "primus")
    if backbone == "PlainConvUNet":
        kwargs = {key: value for key, value in UNET.items() if key != "n_blocks_per_stage"}
        kwargs |= {"n_conv_per_stage": [1, 1, 1]}
        network = unet(kind=PlainConvUNet, kwargs=kwargs)
        plan = build_adaptation_plan(network, plans_of(network, kwargs), "3d_fullres", 1, PATCH)
        checkpoint |= {"network_weights": network.state_dict(), "nnssl_adaptation_plan": plan}
    if backbone == "PrimusX":
        architecture = checkpoint["nnssl_adaptation_plan"]["architecture_plans"]
        theirs = {"encoder_eva_depth": 2, "encoder_eva_numheads": 2, "decoder_eva_depth": 1, "patch_drop_rate": 0.8}
        kept = {key: PRIMUS[key] for key in ("embed_dim", "patch_embed_size", "init_values", "scale_attn_inner")}
        architecture.update(arch_class_name="PrimusX", arch_kwargs={**kept, **theirs, "input_channels": 1})
    made = portable(checkpoint).checkpoint
    network = READERS[reader](made, 1, PATCH)
    assert len(encoder_of(network)) > 20
    assert same_encoder(network, made["network_weights"])
    kwargs = made["nnssl_adaptation_plan"]["architecture_plans"]["arch_kwargs"]
    if backbone.startswith("Primus"):
        assert kwargs["input_shape"] == list(PATCH)
        assert not {"patch_drop_rate", "decoder_eva_depth", "input_channels"} & set(kwargs)


def test_presets_are_named_and_load() -> None:
    """The full-size networks, without memory."""
    from nnunet_ssl.checkpoints.adaptation_plan import RESENC_L
    from nnunet_ssl.checkpoints.networks.spec import checked_spec

    medium = {**PRIMUS, "embed_dim": 864, "eva_depth": 16, "eva_numheads": 12}
    for name, kwargs, preset in (("ResidualEncoderUNet", RESENC_L, "ResEncL"), ("Primus", medium, "PrimusM")):
        network = checked_spec(name, kwargs, "the test").build_empty(1, 1, (160,) * 3)
        plan = build_adaptation_plan(network, plans_of(network, kwargs, (160,) * 3), "3d_fullres", 1, (160,) * 3)
        assert plan["architecture_plans"]["arch_class_name"] == preset
        made = portable({"network_weights": network.state_dict(), "nnssl_adaptation_plan": plan})
        check_loads_downstream(made.checkpoint)
        assert list(made.checkpoint["nnssl_adaptation_plan"]["pretrain_plan"]["configurations"]) == ["onemmiso"]


def test_primus_without_preset_is_described_as_others_read_it() -> None:
    plan = portable(checkpoint_of("primus")).checkpoint["nnssl_adaptation_plan"]
    kwargs = plan["architecture_plans"]["arch_kwargs"]
    assert (kwargs["encoder_eva_depth"], kwargs["encoder_eva_numheads"]) == (2, 2)
    assert (kwargs["input_shape"], kwargs["drop_path_rate"]) == (list(PATCH), 0.0)
    assert "eva_depth" not in kwargs
    assert len(empty_network(plan, 1, PATCH).eva.blocks) == 2


@pytest.mark.parametrize(("backbone", "stated"), [("unet", [16, 24, 16]), ("primus", None)])
def test_crops_smaller_than_the_recommended_patch(backbone: str, stated: list[int] | None) -> None:
    """Of a U-Net they are stated as the patch, because TaWald/nnUNet crashes where these differ; a Primus needs the truth."""
    checkpoint = checkpoint_of(backbone)
    (settings,) = checkpoint["nnssl_adaptation_plan"]["pretrain_plan"]["configurations"].values()
    if backbone == "unet":
        settings["patch_size"] = checkpoint["ssl"]["patch_size"] = [8, 8, 8]
    else:
        checkpoint["nnssl_adaptation_plan"]["recommended_downstream_patchsize"] = [32, 32, 32]
    made = portable(checkpoint).checkpoint
    assert made["nnssl_adaptation_plan"].get("pretrain_patch_size") == stated
    assert canonical_weights(made)[1]["patch_size"] == checkpoint["ssl"]["patch_size"]
    check_loads_downstream(made)


def test_swapped_token_order_is_the_exact_inverse() -> None:
    checkpoint = checkpoint_of("primus")
    with pytest.raises(CheckpointError, match="natural order"):
        portable(checkpoint, ExportOptions(token_order="swapped"))  # 2 x 3 x 2 tokens
    cubic = primus(patch=(24, 24, 16)).state_dict()
    checkpoint["network_weights"], checkpoint["ssl"]["patch_size"] = cubic, [24, 24, 16]
    swapped = portable(checkpoint, ExportOptions(token_order="swapped")).checkpoint
    assert swapped["ssl"]["token_order"] == "swapped"
    assert not same(swapped["network_weights"], cubic)
    weights, info = canonical_weights(swapped)
    assert same(weights, cubic)
    assert "converted to natural order" in info["notes"][0]
    with pytest.raises(ValueError, match="natural, swapped, found 'other'"):
        portable(checkpoint, ExportOptions(token_order="other"))


@pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"nnssl checkpoints are not in {FIXTURES}")
@pytest.mark.parametrize("trainer", ["BaseEvaMAETrainer", "SimMIMEvaTrainer", "SwinUNETREvaTrainer", "VoCoTrainer"])
def test_nnssls_own_checkpoints_come_out_in_natural_order_and_usable(trainer: str, tmp_path: Path) -> None:
    """The fixtures' plans name the full-size preset: the tiny one is put in, as nnssl would have written it."""
    theirs = read_checkpoint(FIXTURES / trainer / "checkpoint_tiny.pth")
    with pytest.raises(CheckpointError, match="not those of the network"):
        export_nnssl(theirs, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    if "Eva" in trainer:
        small = {"embed_dim": 72, "patch_embed_size": [8, 8, 8], "eva_depth": 2, "eva_numheads": 1}
        small |= {"init_values": 0.1, "scale_attn_inner": True}
    else:
        small = {**UNET, "n_stages": 6, "features_per_stage": [8, 16, 16, 16, 32, 32], "kernel_sizes": [[3] * 3] * 6}
        small |= {"strides": [[1] * 3] + [[2] * 3] * 5, "n_blocks_per_stage": [1] * 6}
        small["n_conv_per_stage_decoder"] = [1] * 5
    theirs["nnssl_adaptation_plan"]["architecture_plans"] = {
        "arch_class_name": "Primus" if "Eva" in trainer else "ResidualEncoderUNet",
        "arch_kwargs": small,
        "arch_kwargs_requiring_import": [],
    }
    made = export_nnssl(theirs, tmp_path / "out").checkpoint
    plan = made["nnssl_adaptation_plan"]
    assert plan["key_to_encoder"] == ("eva" if "Eva" in trainer else "encoder.stages")
    again, info = canonical_weights(read_checkpoint(tmp_path / "out" / "checkpoint_final.pth"))
    expected, original = canonical_weights(theirs)
    assert same(again, expected)
    assert info["notes"] == []
    assert {k: v for k, v in info.items() if k != "notes"} == {k: v for k, v in original.items() if k != "notes"}
    assert b"pretrain_json" not in (tmp_path / "out" / "checkpoint_final.pth").read_bytes()


def test_a_supervised_checkpoint_gets_an_adaptation_plan(tmp_path: Path) -> None:
    """nnU-Net's own checkpoints hold the plans, and those say what the network is."""
    kwargs = {k: v for k, v in UNET.items() if k != "n_blocks_per_stage"} | {"n_conv_per_stage": [2, 2, 2]}
    network = unet(kind=PlainConvUNet, kwargs=kwargs)
    arguments = {"plans": plans_of(network, kwargs), "configuration": "3d_fullres", "fold": 0}
    checkpoint = {"network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer", "init_args": arguments}
    plan = export_nnssl(checkpoint, tmp_path / "out").checkpoint["nnssl_adaptation_plan"]
    assert plan["architecture_plans"]["arch_class_name"] == "PlainConvUNet"
    assert plan["key_to_stem"] == "encoder.stages.0"
    del checkpoint["init_args"]
    with pytest.raises(CheckpointError, match="--format safetensors"):
        export_nnssl(checkpoint, tmp_path / "other")
    export_safetensors(checkpoint, tmp_path / "other")
    assert same(read_checkpoint(tmp_path / "other" / "model.safetensors")["network_weights"], network.state_dict())


def test_wrong_weights_are_not_given_away(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("unet")
    weights = dict(checkpoint["network_weights"])
    for name in list(weights):
        if "encoder.stages.1.blocks.0.conv1" in name:
            del weights[name]
    with pytest.raises(CheckpointError, match=r"Missing key.*blocks\.0\.conv1"):
        export_nnssl({**checkpoint, "network_weights": weights}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["names", "aliases", "config"])
def test_damaged_metadata_are_named(key: str, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    export_safetensors(checkpoint_of("unet"), tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = {k: v.clone() for k, v in load_file(file).items()}
    save_file(tensors, file, {**metadata, key: metadata[key][:-9]})
    with pytest.raises(CheckpointError, match=r"metadata of .* are damaged"):
        read_checkpoint(file)
    save_file(tensors, file, {**metadata, "nnunet_ssl": "99"})
    with pytest.raises(CheckpointError, match="Update nnunet_ssl"):
        read_checkpoint(file)


def test_never_overwrites_what_is_not_an_export(tmp_path: Path) -> None:
    checkpoint, out = checkpoint_of("unet"), tmp_path / "out"
    export_nnssl(checkpoint, out)
    before = (out / "checkpoint_final.pth").read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite"):
        export_safetensors(checkpoint, out)
    export_safetensors(checkpoint, out, overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == ["adaptation_plan.json", "config.json", "model.safetensors"]
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.tex.*never overwrites"):
        export_nnssl(checkpoint, out, overwrite=True)
    assert (out / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is a file"):
        export_nnssl(checkpoint, tmp_path / "file", overwrite=True)
    assert before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out"]


def test_a_failure_leaves_the_earlier_export_and_no_rubbish(tmp_path: Path) -> None:
    export_nnssl(checkpoint_of("unet"), tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def interrupted(folder: Path, _: object) -> None:
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_nnssl(checkpoint_of("unet"), tmp_path / "out", overwrite=True, finish=interrupted)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_licence_and_changes_stay_out_of_the_original() -> None:
    checkpoint = checkpoint_of("unet")
    untouched = deepcopy({k: v for k, v in checkpoint.items() if k != "network_weights"})
    made = portable(checkpoint, ExportOptions(licence="CC-BY-4.0")).checkpoint
    assert made["ssl"]["licence"] == "CC-BY-4.0"
    assert {k: v for k, v in checkpoint.items() if k not in ("network_weights", "logging", "ssl")} == {
        k: v for k, v in untouched.items() if k not in ("logging", "ssl")
    }
    assert checkpoint["ssl"]["licence"] is None
    assert "heads" in checkpoint["ssl"]
