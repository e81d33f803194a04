"""The newest published weights, small, as the programs of their makers write them: nnFoundation, MultiTalent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from readers_of_exports import READERS

from nnunet_ssl.checkpoints.adaptation.adapt import adapt
from nnunet_ssl.checkpoints.adaptation_plan import RESENC_L
from nnunet_ssl.checkpoints.canonical import canonical_weights
from nnunet_ssl.checkpoints.description.conventions import read_conventions
from nnunet_ssl.checkpoints.networks.spec import checked_spec
from nnunet_ssl.checkpoints.networks.stated import network_of, stated_network
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.cli.export import main as export
from nnunet_ssl.cli.info import main as info
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.integration.architecture import spec_of
from nnunet_ssl.integration.load_network import load_network
from nnunet_ssl.planners.finetuning.finetune_plans import Wishes, choose_schemes

UNET = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "n_blocks_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


def plan_of_nnfoundation_vit(**changes: Any) -> dict[str, Any]:
    """The adaptation plan as nnssl's nnFoundationViT trainer writes it: 14 arguments, the pre-training's own among them."""
    kwargs = {
        "input_channels": 1,
        "embed_dim": 1056,
        "patch_embed_size": [8, 8, 8],
        "output_channels": 1,
        "input_shape": [192, 192, 192],
        "encoder_eva_depth": 40,
        "encoder_eva_numheads": 16,
        "decoder_eva_depth": 8,
        "decoder_eva_numheads": 16,
        "patch_drop_rate": 0.8,
        "drop_path_rate": 0.2,
        "attn_drop_rate": 0.0,
        "init_values": 0.1,
        "scale_attn_inner": True,
        **changes,
    }
    configuration = {"spacing": None, "spacing_style": "noresample", "patch_size": [192, 192, 192]}
    return {
        "architecture_plans": {
            "arch_class_name": "PrimusX",
            "arch_kwargs": kwargs,
            "arch_kwargs_requiring_import": None,
        },
        "pretrain_plan": {
            "configurations": {"noresample": {**configuration, "normalization_schemes": ["ZScoreNormalization"]}}
        },
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [192, 192, 192],
        "key_to_encoder": "eva",
        "key_to_stem": "down_projection",
        "keys_to_in_proj": ["down_projection.proj"],
        "key_to_lpe": "eva.pos_embed",
    }


def test_primusx_of_nnfoundation() -> None:
    network = stated_network({"nnssl_adaptation_plan": plan_of_nnfoundation_vit()})
    assert network is not None
    assert (network.kwargs["eva_depth"], network.kwargs["eva_numheads"]) == (40, 16)
    assert (network.kwargs["init_values"], network.kwargs["drop_path_rate"]) == (0.1, 0.2)
    assert str(network) == "Primus (width 1056, depth 40, 16 heads)"
    (note,) = network.notes
    for dropped in ("input_channels 1", "output_channels 1", "decoder_eva_depth 8", "decoder_eva_numheads 16"):
        assert dropped in note
    assert "patch_drop_rate 0.8 (hides tokens, in pre-training alone)" in note
    old_form = stated_network({"nnssl_adaptation_plan": plan_of_nnfoundation_vit(init_values=[0.1])})
    assert old_form is not None
    assert old_form.kwargs["init_values"] == 0.1
    with pytest.raises(CheckpointError, match="encoder_eva_depth and eva_depth of its encoder"):
        stated_network({"nnssl_adaptation_plan": plan_of_nnfoundation_vit(eva_depth=3)})
    with pytest.raises(CheckpointError, match="not on our list: use_gated_attention"):
        stated_network({"nnssl_adaptation_plan": plan_of_nnfoundation_vit(use_gated_attention=True)})


def test_a_vit_that_was_trained_with_few_tokens_sees_all_of_them(tmp_path: Path, capsys) -> None:
    """nnFoundation's ViT, small: described, planned and built without what its pre-training alone had."""
    small = {"embed_dim": 36, "encoder_eva_depth": 2, "encoder_eva_numheads": 2, "input_shape": [16, 16, 16]}
    names = {"embed_dim": 36, "patch_embed_size": [8] * 3, "eva_depth": 2, "eva_numheads": 2, "init_values": 0.1}
    bare = checked_spec("Primus", {**names, "scale_attn_inner": True}, "a test").build_empty(1, 2, (16, 16, 16))
    encoder = {n: torch.randn(t.shape) for n, t in bare.state_dict().items() if not n.startswith("up_projection.")}
    decoder = {"decoder.blocks.0.norm1.weight": torch.ones(36), "mask_token": torch.zeros(1, 1, 36)}
    plan = plan_of_nnfoundation_vit(**small)
    plan["pretrain_plan"]["configurations"]["noresample"]["patch_size"] = [16, 16, 16]
    torch.save({"network_weights": {**encoder, **decoder}, "nnssl_adaptation_plan": plan}, tmp_path / "vit.pth")
    info([str(tmp_path / "vit.pth"), "--json"])
    described = json.loads(capsys.readouterr().out)
    assert described["problem"] is None
    assert "patch_drop_rate" not in described["architecture"]["arch_kwargs"]
    assert any("patch_drop_rate 0.8" in note for note in described["notes"])
    network = load_network(tmp_path / "vit.pth").train()
    assert any("patch_drop_rate 0.8" in note for note in network.nnunet_ssl_transfer_report.notes)
    seen = []
    network.eva.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    network(torch.randn(1, 1, 16, 16, 16))
    assert seen == [8]
    # Plans written before this was known name it still.
    architecture = {
        **described["architecture"],
        "arch_kwargs": {**described["architecture"]["arch_kwargs"], "patch_drop_rate": 0.8},
    }
    assert "patch_drop_rate" not in spec_of({"architecture": architecture}, "the plans").kwargs


def test_the_cnn_of_nnfoundation() -> None:
    """ResEncL by name, spacing null, patch 192^3: planned on the data set's own spacing, on request as in its pre-training."""
    configuration = {"spacing": None, "spacing_style": "noresample", "patch_size": [192] * 3}
    configuration["normalization_schemes"] = ["ZScoreNormalization"]
    weights = checked_spec("ResidualEncoderUNet", RESENC_L, "a test").build_empty(1, 1, (192,) * 3).state_dict()
    checkpoint = {
        "network_weights": weights,
        "nnssl_adaptation_plan": {
            "architecture_plans": {
                "arch_class_name": "ResEncL",
                "arch_kwargs": None,
                "arch_kwargs_requiring_import": None,
            },
            "pretrain_plan": {"configurations": {"noresample": configuration}},
            "pretrain_num_input_channels": 1,
            "recommended_downstream_patchsize": [192] * 3,
            "key_to_encoder": "encoder.stages",
            "key_to_stem": "encoder.stem",
            "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
            "key_to_lpe": None,
        },
    }
    canonical, _ = canonical_weights(checkpoint)
    network, conventions = network_of(checkpoint, canonical), read_conventions(checkpoint)
    assert str(network).startswith("ResEncL (")
    assert len([name for name in canonical if name.startswith("encoder.")]) == 448
    assert (conventions.resampled, conventions.spacing, conventions.finetuning_patch_size) == (False, None, (192,) * 3)
    assert Wishes().resolved_adapt(conventions) == "like_dataset"
    assert Wishes(adapt="like_pretrained").resolved_adapt(conventions) == "like_pretrained"  # which resamples nothing
    assert choose_schemes(["CTNormalization"], conventions.normalization) == ["CTNormalization"]


def test_flat_kernels_are_those_that_others_average() -> None:
    """3x3x3 kernels on a plan with 1x3x3: the sum over the axis and its mean are one network, as normalisation follows."""
    torch.manual_seed(0)
    flat = {**UNET, "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3]]}
    source, ours = (build("ResidualEncoderUNet", kwargs) for kwargs in (UNET, flat))
    state, report = adapt(source.state_dict(), ours)
    assert report.groups["encoder"].fresh == report.groups["stem"].fresh == 0, "all of it is used"
    ours.load_state_dict(state)
    theirs = build("ResidualEncoderUNet", flat)
    before = source.state_dict()
    theirs.load_state_dict(
        {
            name: before[name].mean(2, keepdim=True)
            if before[name].ndim == 5 and before[name].shape != tensor.shape
            else tensor
            for name, tensor in state.items()
        }
    )
    changed = [n for n, t in theirs.state_dict().items() if n.startswith("encoder.") and not torch.equal(t, state[n])]
    assert len(changed) > 5
    image = torch.randn(1, 1, 16, 16, 16)
    for mine, averaged in zip(ours.encoder(image), theirs.encoder(image), strict=True):
        torch.testing.assert_close(mine, averaged, rtol=0, atol=2e-3)


def build(name: str, kwargs: dict[str, Any]) -> Any:
    architecture = checked_spec(name, kwargs, "a test").architecture((16, 16, 16))
    arguments = (architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"])
    return get_network_from_plans(*arguments, 1, 2, allow_init=True, deep_supervision=False)


# ---------------------------------------------------------------------------------------------- MultiTalent

STEMS = {"004": 4.0, "351_0": 1.0, "351_1": 2.0, "067": 9.0}  # with the value of all their weights
MEAN = 4.0


def multitalent(**plan: Any) -> dict[str, Any]:
    """A small U-Net with a stem for each of several data sets, under all the names that nnU-Net's networks have."""
    bare = checked_spec("ResidualEncoderUNet", UNET, "a test").build_empty(1, 2, (16, 16, 16)).state_dict()
    weights = {n: torch.full(t.shape, 0.5) for n, t in bare.items() if "encoder.stem." not in n}
    for stem, value in STEMS.items():
        for name in (n for n in bare if "encoder.stem." in n):
            weights[name.replace("encoder.stem.", f"encoder.stem.{stem}.")] = torch.full(bare[name].shape, value)
    return {
        "network_weights": weights,
        "nnssl_adaptation_plan": {
            "architecture_plans": {
                "arch_class_name": "ResidualEncoderUNet",
                "arch_kwargs": UNET,
                "arch_kwargs_requiring_import": ["conv_op", "norm_op", "nonlin"],
            },
            "pretrain_plan": {"configurations": {"onemmiso": {"spacing": [1, 1, 1], "patch_size": [16, 16, 16]}}},
            "pretrain_num_input_channels": 1,
            "recommended_downstream_patchsize": [16, 16, 16],
            "key_to_encoder": "encoder.stages",
            "key_to_stem": "encoder.stem.351_0",
            "keys_to_in_proj": ["encoder.stem.351_0.convs.0.conv", "encoder.stem.351_0.convs.0.all_modules.0"],
            "key_to_lpe": None,
            **plan,
        },
    }


def stem_of(network: torch.nn.Module) -> float:
    values = torch.cat([tensor.flatten() for name, tensor in network.state_dict().items() if ".stem." in name])
    assert (values == values[0]).all(), "one stem, whole"
    return float(values[0])


@pytest.mark.parametrize(
    ("wanted", "names", "value"),
    [
        (None, None, STEMS["351_0"]),
        (None, ["CT"], STEMS["351_0"]),
        (None, ["MRI"], MEAN),
        ("004", ["CT"], STEMS["004"]),
        ("4", None, STEMS["004"]),
        ("encoder.stem.351_1", None, STEMS["351_1"]),
        ("mean", ["CT"], MEAN),
    ],
)
def test_a_stem_of_many(wanted: str | None, names: list[str] | None, value: float) -> None:
    weights, info = canonical_weights(multitalent(), stem=wanted, target_channel_names=names)
    assert float(weights["encoder.stem.convs.0.conv.weight"].mean()) == value
    assert float(weights["decoder.encoder.stem.convs.0.all_modules.0.weight"].mean()) == value
    assert info["stems"] == list(STEMS)
    assert any(note.startswith("stem: ") and "of 4" in note for note in info["notes"])
    assert not any(".stem.0" in name or ".stem.3" in name for name in weights)


def test_stems_that_are_not_there_are_named() -> None:
    with pytest.raises(
        CheckpointError, match=r"no stem '5', its stems: 004, 351_0, 351_1, 067. Expected one of them, or mean"
    ):
        canonical_weights(multitalent(), stem="5")
    with pytest.raises(CheckpointError, match="stems that begin with this number: 351_0, 351_1"):
        canonical_weights(multitalent(), stem="351")
    other = multitalent()
    for name in (n for n in other["network_weights"] if "stem.067." in n and n.endswith(("conv.weight", "s.0.weight"))):
        other["network_weights"][name] = torch.zeros(4, 3, 3, 3, 3)
    with pytest.raises(CheckpointError, match=r"differ in encoder\.stem\.convs\.0\.conv\.weight, so they have no mean"):
        canonical_weights(other, stem="mean")
    with pytest.raises(CheckpointError, match="one stem for all images"):
        canonical_weights(prepared_once(multitalent()), stem="mean")
    _, info = canonical_weights(multitalent(key_to_stem="encoder.stem"))
    assert info["stem"] == "mean", "the file chooses none"


def prepared_once(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {"network_weights": canonical_weights(checkpoint)[0]}


def test_stems_from_the_command_line_to_other_programs(tmp_path: Path, capsys) -> None:
    """Listed by nnUNetv2_pretrain_info, loaded by our own, given on as a file with one stem that every reader takes."""
    torch.save(multitalent(), tmp_path / "multitalent.pth")
    info([str(tmp_path / "multitalent.pth")])
    shown = capsys.readouterr().out
    assert "4, to choose from with --stem: 004, 351_0, 351_1, 067" in shown
    assert "Stem: 351_0 of 4, the file's own choice" in shown
    assert "cannot be fine-tuned" not in shown
    network = load_network(tmp_path / "multitalent.pth", stem="067")
    assert stem_of(network) == STEMS["067"]
    export([str(tmp_path / "multitalent.pth"), "-o", str(tmp_path / "out"), "--stem", "4"])
    assert "stems other than 004 (4 in all)" in capsys.readouterr().out
    for reader in READERS.values():
        exported = read_checkpoint(tmp_path / "out" / "checkpoint_final.pth")
        assert stem_of(reader(exported, 1, (16, 16, 16))) == STEMS["004"]
    assert canonical_weights(read_checkpoint(tmp_path / "out" / "checkpoint_final.pth"))[1]["stems"] == []
