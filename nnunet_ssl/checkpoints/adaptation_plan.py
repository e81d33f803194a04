"""The `nnssl_adaptation_plan` inside a checkpoint: what OpenMind's fine-tuning code needs to know about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nnunet_ssl.checkpoints.adaptation.layout import PLACE_KEYS
from nnunet_ssl.errors import CheckpointError

RESENC_L: dict[str, Any] = {
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "n_conv_per_stage_decoder": [1, 1, 1, 1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
PRIMUS_PRESETS = {  # (width, depth, heads), arXiv:2503.01835
    (396, 12, 6): "PrimusS",
    (792, 12, 12): "PrimusB",
    (864, 16, 12): "PrimusM",
    (1056, 24, 16): "PrimusL",
}
UNETS = ("ResidualEncoderUNet", "PlainConvUNet")


def build_adaptation_plan(
    network: nn.Module,
    plans: Mapping[str, Any],
    configuration: str,
    num_input_channels: int,
    patch_size: Sequence[int],
) -> dict[str, Any]:
    """The plan for a bare network of `plans`, pre-trained on patches of `patch_size` voxels; plain data for JSON.

    Named presets (ResEncL, PrimusS/B/M/L) are named only where the network is exactly that; all others carry their
    arguments. Raises CheckpointError for networks that fine-tuning code could not rebuild.
    """
    settings = _configuration(plans, configuration)
    missing = [key for key in PLACE_KEYS if not hasattr(network, key)]
    if missing:
        raise CheckpointError(
            f"{type(network).__name__} has no {', '.join(missing)}, expected one of nnU-Net's networks. "
            "Plan with one of nnU-Net's planners."
        )
    spacing = settings.get("spacing")
    plan = {
        "architecture_plans": _architecture_plans(network, settings, patch_size),
        "pretrain_plan": {
            "dataset_name": plans["dataset_name"],
            "plans_name": plans["plans_name"],
            "original_median_spacing_after_transp": plans.get("original_median_spacing_after_transp"),
            "image_reader_writer": plans.get("image_reader_writer"),
            "transpose_forward": plans.get("transpose_forward"),
            "transpose_backward": plans.get("transpose_backward"),
            "configurations": {
                configuration: {
                    "data_identifier": settings.get("data_identifier"),
                    "preprocessor_name": settings.get("preprocessor_name", "DefaultPreprocessor"),
                    "spacing_style": _spacing_style(spacing),
                    "normalization_schemes": settings.get("normalization_schemes"),
                    "use_mask_for_norm": settings.get("use_mask_for_norm"),
                    "resampling_fn_data": settings.get("resampling_fn_data"),
                    "resampling_fn_data_kwargs": settings.get("resampling_fn_data_kwargs"),
                    "resampling_fn_mask": settings.get("resampling_fn_seg"),
                    "resampling_fn_mask_kwargs": settings.get("resampling_fn_seg_kwargs"),
                    "spacing": spacing,
                    "patch_size": patch_size,
                }
            },
            "experiment_planner_used": plans.get("experiment_planner_used"),
        },
        "pretrain_num_input_channels": num_input_channels,
        "recommended_downstream_patchsize": settings.get("patch_size", patch_size),
        "key_to_encoder": network.key_to_encoder,
        "key_to_stem": network.key_to_stem,
        "keys_to_in_proj": network.keys_to_in_proj,
        "key_to_lpe": getattr(network, "key_to_lpe", None),
    }
    return _as_json(plan)


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The configuration with what it inherits filled in."""
    configurations = plans["configurations"]
    if name not in configurations:
        raise CheckpointError(f"The plans have no configuration {name!r}. They have {', '.join(configurations)}.")
    settings = dict(configurations[name])
    parent = settings.pop("inherits_from", None)
    return settings if parent is None else {**_configuration(plans, parent), **settings}


def _architecture_plans(network: nn.Module, settings: Mapping[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
    if hasattr(network, "eva"):
        name, kwargs, imports = _primus(network, settings, patch_size)
    else:
        name, kwargs, imports = _unet(network, settings)
    return {"arch_class_name": name, "arch_kwargs": kwargs, "arch_kwargs_requiring_import": imports}


def _unet(network: nn.Module, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None, list[str] | None]:
    name, architecture = type(network).__name__, settings.get("architecture", {})
    if name not in UNETS:
        raise CheckpointError(f"{name} is none of {', '.join(UNETS)} or Primus. Plan with one of nnU-Net's planners.")
    kwargs = dict(architecture["arch_kwargs"])
    if name == "ResidualEncoderUNet" and _is_resenc_l(kwargs):
        return "ResEncL", None, None
    imports = [key for key in architecture["_kw_requires_import"] if kwargs.get(key) is not None]
    return name, kwargs, imports


def _is_resenc_l(kwargs: Mapping[str, Any]) -> bool:
    def comparable(values: Mapping[str, Any]) -> dict[str, Any]:
        plain = _as_json(values)
        for key in ("conv_op", "norm_op", "nonlin"):  # torch.nn.Conv3d and torch.nn.modules.conv.Conv3d are one class
            plain[key] = str(plain.get(key)).rpartition(".")[2]
        for key in ("kernel_sizes", "strides"):
            plain[key] = [[size] * 3 if isinstance(size, int) else size for size in plain.get(key) or []]
        plain["dropout_op_kwargs"] = plain.get("dropout_op_kwargs") or None
        return plain

    return comparable({**dict.fromkeys(RESENC_L), **kwargs}) == comparable(RESENC_L)


def _primus(
    network: nn.Module, settings: Mapping[str, Any], patch_size: Sequence[int]
) -> tuple[str, dict[str, Any] | None, list[str] | None]:
    projection = getattr(network.down_projection, "proj", None)
    if not isinstance(projection, nn.Conv3d):
        raise CheckpointError(
            f"{type(network).__name__} has no single-convolution patch embedding, so fine-tuning code could not resize "
            "its position embedding. Plan with SSLPlannerPrimusM."
        )
    eva: Any = network.eva
    first = eva.blocks[0]
    width, depth, heads = int(eva.embed_dim), len(eva.blocks), int(first.attn.num_heads)
    scaled = isinstance(first.attn.norm, nn.LayerNorm)
    layer_scale = first.gamma_1 is not None
    preset = PRIMUS_PRESETS.get((width, depth, heads))
    if preset and projection.kernel_size == (8, 8, 8) and scaled and layer_scale:
        return preset, None, None
    kwargs = {
        "embed_dim": width,
        "patch_embed_size": projection.kernel_size,
        "eva_depth": depth,
        "eva_numheads": heads,
        "scale_attn_inner": scaled,
        "init_values": 0.1 if layer_scale else None,
        # GloViTa builds the network with its patch; nnDetection takes over how it was regularised.
        "input_shape": patch_size,
        "drop_path_rate": settings.get("architecture", {}).get("arch_kwargs", {}).get("drop_path_rate", 0.0),
    }
    return "Primus", kwargs, []


def _spacing_style(spacing: Sequence[float] | None) -> str:
    """nnssl's name for how the spacing (mm) came about."""
    if spacing is None:
        return "noresample"
    return "onemmiso" if all(s == 1 for s in spacing) else "median"


def _as_json(value: Any) -> Any:
    """Tuples as lists, numpy numbers as Python's, whole floats as int, as nnssl writes its plans."""
    if isinstance(value, Mapping):
        return {str(k): _as_json(v) for k, v in value.items()}
    if isinstance(value, (str, bool)) or value is None:
        return value
    if hasattr(value, "tolist"):
        return _as_json(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_as_json(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
