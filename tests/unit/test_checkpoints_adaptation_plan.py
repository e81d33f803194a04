"""The adaptation plan that other fine-tuning code reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_ssl.checkpoints.adaptation_plan import build_adaptation_plan
from nnunet_ssl.errors import CheckpointError

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "reference" / "fixtures"
NETWORKS = "dynamic_network_architectures.architectures.unet."


def arch_kwargs(**changes: Any) -> dict[str, Any]:
    return {
        "n_stages": 6,
        "features_per_stage": (32, 64, 128, 256, 320, 320),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 6,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
        "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
        "n_conv_per_stage_decoder": [1, 1, 1, 1, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    } | changes


def plans(
    kwargs: dict[str, Any], network: str = "ResidualEncoderUNet", spacing: Any = (1.0, 1.0, 1.0)
) -> dict[str, Any]:
    return {
        "dataset_name": "Dataset004_Hippocampus",
        "plans_name": "nnUNetSSLResEncLPlans",
        "original_median_spacing_after_transp": [1.5, 1.0, np.float64(1.0)],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": (0, 1, 2),
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "SSLPlannerResEncL",
        "configurations": {
            "2d": {"patch_size": [8, 8]},
            "base": {
                "data_identifier": "nnUNetSSLResEncLPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
                "spacing": spacing,
                "patch_size": [160, 160, 160],
            },
            "3d_fullres": {
                "inherits_from": "base",
                "architecture": {
                    "network_class_name": NETWORKS + network,
                    "arch_kwargs": kwargs,
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            },
        },
    }


def build(kwargs: dict[str, Any], network: str = "ResidualEncoderUNet") -> nn.Module:
    imports = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    with torch.device("meta"):
        return get_network_from_plans(NETWORKS + network, kwargs, imports, 1, 2, allow_init=False)


def primus(width: int, depth: int, heads: int, token: int = 8, **kwargs: Any) -> nn.Module:
    options = {"init_values": 0.1, "scale_attn_inner": True} | kwargs
    return Primus(
        1, width, (token,) * 3, 2, eva_depth=depth, eva_numheads=heads, input_shape=(4 * token,) * 3, **options
    )


def test_resenc_l_is_named_and_says_everything() -> None:
    plan = build_adaptation_plan(build(arch_kwargs()), plans(arch_kwargs()), "3d_fullres", 1, (64, 64, 64))
    assert plan == {
        "architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None},
        "pretrain_plan": {
            "dataset_name": "Dataset004_Hippocampus",
            "plans_name": "nnUNetSSLResEncLPlans",
            "original_median_spacing_after_transp": [1.5, 1, 1],
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {
                "3d_fullres": {
                    "data_identifier": "nnUNetSSLResEncLPlans_3d_fullres",
                    "preprocessor_name": "DefaultPreprocessor",
                    "spacing_style": "onemmiso",
                    "normalization_schemes": ["ZScoreNormalization"],
                    "use_mask_for_norm": [False],
                    "resampling_fn_data": "resample_data_or_seg_to_shape",
                    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
                    "resampling_fn_mask": "resample_data_or_seg_to_shape",
                    "resampling_fn_mask_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
                    "spacing": [1, 1, 1],
                    "patch_size": [64, 64, 64],
                }
            },
            "experiment_planner_used": "SSLPlannerResEncL",
        },
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [160, 160, 160],
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
        "key_to_lpe": None,
    }
    assert json.loads(json.dumps(plan)) == plan


@pytest.mark.parametrize(
    "changes",
    [
        {"features_per_stage": [32, 64, 128, 256, 512, 512]},
        {"n_blocks_per_stage": [1, 3, 4, 6, 6, 5]},
        {"strides": [[1, 1, 1], [1, 2, 2]] + [[2, 2, 2]] * 4},
        {"kernel_sizes": [[1, 3, 3]] + [[3, 3, 3]] * 5},
        {"conv_bias": False},
    ],
)
def test_anything_else_carries_its_arguments(changes: dict[str, Any]) -> None:
    kwargs = arch_kwargs(**changes)
    plan = build_adaptation_plan(build(kwargs), plans(kwargs), "3d_fullres", 1, (64, 64, 64))
    architecture = plan["architecture_plans"]
    assert architecture["arch_class_name"] == "ResidualEncoderUNet"
    assert architecture["arch_kwargs"] == json.loads(json.dumps(kwargs))
    assert architecture["arch_kwargs_requiring_import"] == ["conv_op", "norm_op", "nonlin"]
    assert build(architecture["arch_kwargs"]).state_dict().keys() == build(kwargs).state_dict().keys()


def test_resenc_l_written_in_another_way_is_still_named() -> None:
    kwargs = arch_kwargs(kernel_sizes=[3] * 6, strides=[1, 2, 2, 2, 2, 2], conv_op="torch.nn.Conv3d")
    plan = build_adaptation_plan(build(kwargs), plans(kwargs), "3d_fullres", 1, (64, 64, 64))
    assert plan["architecture_plans"]["arch_class_name"] == "ResEncL"


def test_plain_unet() -> None:
    kwargs = arch_kwargs()
    kwargs["n_conv_per_stage"] = kwargs.pop("n_blocks_per_stage")
    plan = build_adaptation_plan(
        build(kwargs, "PlainConvUNet"), plans(kwargs, "PlainConvUNet"), "3d_fullres", 2, (64,) * 3
    )
    assert plan["architecture_plans"]["arch_class_name"] == "PlainConvUNet"
    assert plan["pretrain_num_input_channels"] == 2
    assert plan["key_to_stem"] == "encoder.stages.0"


@pytest.mark.parametrize(
    ("spacing", "style"), [((1.0, 1.0, 1.0), "onemmiso"), (None, "noresample"), ([0.8, 0.8, 2.0], "median")]
)
def test_spacing_style(spacing: Any, style: str) -> None:
    kwargs = arch_kwargs()
    plan = build_adaptation_plan(build(kwargs), plans(kwargs, spacing=spacing), "3d_fullres", 1, (64,) * 3)
    settings = plan["pretrain_plan"]["configurations"]["3d_fullres"]
    assert settings["spacing_style"] == style
    assert settings["spacing"] == (None if spacing is None else list(spacing))


@pytest.mark.parametrize(
    ("size", "name"), [((396, 12, 6), "PrimusS"), ((792, 12, 12), "PrimusB"), ((864, 16, 12), "PrimusM")]
)
def test_primus_presets(size: tuple[int, int, int], name: str) -> None:
    with torch.device("meta"):
        network = primus(*size)
    plan = build_adaptation_plan(network, plans({}), "3d_fullres", 1, (32, 32, 32))
    assert plan["architecture_plans"] == {
        "arch_class_name": name,
        "arch_kwargs": None,
        "arch_kwargs_requiring_import": None,
    }
    assert plan["key_to_encoder"] == "eva"
    assert plan["key_to_stem"] == "down_projection"
    assert plan["keys_to_in_proj"] == ["down_projection.proj"]
    assert plan["key_to_lpe"] == "eva.pos_embed"


@pytest.mark.parametrize(
    "options",
    [
        {"width": 72, "depth": 2, "heads": 1},
        {"width": 396, "depth": 12, "heads": 6, "token": 4},
        {"width": 396, "depth": 12, "heads": 6, "scale_attn_inner": False},
        {"width": 396, "depth": 12, "heads": 6, "init_values": None},
    ],
)
def test_other_primus_can_be_rebuilt_from_its_arguments(options: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = primus(**options)
    plan = build_adaptation_plan(network, plans({}), "3d_fullres", 1, (32, 32, 32))
    architecture = json.loads(json.dumps(plan))["architecture_plans"]
    assert architecture["arch_class_name"] == "Primus"
    shape = [4 * size for size in architecture["arch_kwargs"]["patch_embed_size"]]
    with torch.device("meta"):
        rebuilt = Primus(input_channels=1, num_classes=2, **{**architecture["arch_kwargs"], "input_shape": shape})
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in rebuilt.state_dict().items()} == shapes
    assert rebuilt.eva.blocks[0].attn.num_heads == network.eva.blocks[0].attn.num_heads


def test_what_cannot_be_planned_is_refused() -> None:
    kwargs = arch_kwargs()
    with pytest.raises(CheckpointError, match=r"no configuration '3d_lowres'. They have 2d, base, 3d_fullres"):
        build_adaptation_plan(build(kwargs), plans(kwargs), "3d_lowres", 1, (64,) * 3)
    with pytest.raises(CheckpointError, match="Conv3d has no key_to_encoder"):
        build_adaptation_plan(nn.Conv3d(1, 1, 1), plans(kwargs), "3d_fullres", 1, (64,) * 3)


@pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"nnssl checkpoints are not in {FIXTURES}")
@pytest.mark.parametrize("trainer", ["BaseMAETrainer", "BaseEvaMAETrainer", "NonResEncL_BaseMAETrainer_Test"])
def test_same_keys_as_nnssl_writes(trainer: str) -> None:
    theirs = json.loads(next((FIXTURES / trainer).glob("full_size*.json")).read_text())["adaptation_plan"]
    kwargs = theirs["architecture_plans"]["arch_kwargs"] or arch_kwargs()
    if "Eva" in trainer:
        with torch.device("meta"):
            network = primus(864, 16, 12)
    else:
        network = build(kwargs)
    ours = build_adaptation_plan(network, plans(kwargs), "3d_fullres", 1, (160, 160, 160))
    assert ours["architecture_plans"] == theirs["architecture_plans"]
    for key in ("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe", "recommended_downstream_patchsize"):
        assert ours[key] == theirs[key]
    assert ours.keys() == theirs.keys()
    assert ours["pretrain_plan"].keys() == theirs["pretrain_plan"].keys()
    (our_settings,) = ours["pretrain_plan"]["configurations"].values()
    (their_settings,) = theirs["pretrain_plan"]["configurations"].values()
    assert our_settings.keys() == their_settings.keys()
