"""Which network the weights of a checkpoint belong to: as the file states it, or as its shapes tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunet_ssl.checkpoints.adaptation.layout import Layout
from nnunet_ssl.checkpoints.adaptation_plan import PRIMUS_PRESETS, RESENC_L
from nnunet_ssl.checkpoints.aliases import own_name
from nnunet_ssl.checkpoints.canonical import attention_heads
from nnunet_ssl.checkpoints.foreign_values import mapping
from nnunet_ssl.checkpoints.networks.architecture import recognise
from nnunet_ssl.checkpoints.networks.spec import NetworkSpec, checked_spec
from nnunet_ssl.errors import CheckpointError

DROP_PATH = 0.2  # of nnU-Net's Primus trainers and of nnssl's pre-training
PRIMUS_DEFAULTS = {"drop_path_rate": DROP_PATH, "init_values": 0.1, "scale_attn_inner": True}
PRIMUSX_NAMES = {"encoder_eva_depth": "eva_depth", "encoder_eva_numheads": "eva_numheads"}


def network_of(checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor]) -> NetworkSpec:
    """The network behind `weights` (canonical, as canonical_weights returns them): what the file states where that is true.

    A statement that the weights contradict, and a missing one, are replaced by what can be read from the shapes. Raises
    CheckpointError for networks nnU-Net does not build and for statements outside our allow-list.
    """
    stated = stated_network(checkpoint)
    wrong = None if stated is None else contradiction(stated, weights)
    if stated is not None and wrong is None:
        return stated
    notes = []
    if stated is not None:
        notes.append(f"{stated.source} names {stated}, but {wrong}: taken from the shapes of the weights instead")
    found = network_from_shapes(checkpoint, weights, tuple(notes))
    wrong = contradiction(found, weights)
    if wrong is not None:
        raise CheckpointError(
            f"The weights look like {found}, but {wrong}. Expected one of nnU-Net's own networks; fine-tune others with "
            "the program they come from."
        )
    return found


def stated_network(checkpoint: Mapping[str, Any]) -> NetworkSpec | None:
    """The network a checkpoint says it holds: in nnU-Net's plans, or in nnssl's adaptation plan; None where silent."""
    architecture = training_configuration(checkpoint).get("architecture")
    if isinstance(architecture, Mapping) and isinstance(architecture.get("arch_kwargs"), Mapping):
        network_class = str(architecture.get("network_class_name"))
        return checked_spec(network_class, architecture["arch_kwargs"], "the plans in the file")
    plan = mapping(mapping(checkpoint.get("nnssl_adaptation_plan")).get("architecture_plans"))
    name, kwargs = plan.get("arch_class_name"), plan.get("arch_kwargs")
    if name is None:
        return None
    where = "its nnssl_adaptation_plan"
    if name in ("ResEncL", "NoSkipResEncL"):
        return checked_spec("ResidualEncoderUNet", RESENC_L, where)
    sizes = {preset: numbers for numbers, preset in PRIMUS_PRESETS.items()}
    if kwargs is None and name in sizes:
        return checked_spec("Primus", _primus_arguments(*sizes[name]), where)
    if not isinstance(kwargs, Mapping):
        raise CheckpointError(
            f"{where} names the architecture {str(name)[:100]!r} without its arguments. Known without them: "
            f"{', '.join(['ResEncL', *sizes])}."
        )
    if str(name).startswith("Primus"):
        twice = [key for key, own in PRIMUSX_NAMES.items() if key in kwargs and own in kwargs]
        if twice:
            named = ", ".join(f"{key} and {PRIMUSX_NAMES[key]}" for key in twice)
            raise CheckpointError(f"{where} says {named} of its encoder. Expected one of the two names.")
        renamed = {PRIMUSX_NAMES.get(str(key), str(key)): value for key, value in kwargs.items()}
        return checked_spec("Primus" if name == "PrimusX" else str(name), {**PRIMUS_DEFAULTS, **renamed}, where)
    return checked_spec(str(name), kwargs, where)


def training_configuration(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in the plans of nnU-Net's and our checkpoints, with what it inherits; {} where there is none."""
    arguments = mapping(checkpoint.get("init_args"))
    configurations = mapping(mapping(arguments.get("plans")).get("configurations"))
    name: Any = arguments.get("configuration")
    merged, seen = dict[str, Any](), set[str]()
    while isinstance(name, str) and name not in seen and isinstance(configurations.get(name), Mapping):
        seen.add(name)
        merged = {**configurations[name], **merged}
        name = configurations[name].get("inherits_from")
    return merged


def network_from_shapes(
    checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor], notes: tuple[str, ...] = ()
) -> NetworkSpec:
    """The network that names and shapes of canonical weights tell; what they cannot tell is assumed and noted."""
    where, found = "the shapes of the weights", recognise(weights)
    if found.family == "Primus":
        if found.width is None or found.token_size is None or found.depth is None:
            raise CheckpointError(
                "The weights are of a transformer, but not of a Primus with a one-convolution patch embedding: expected "
                "eva.norm.weight and down_projection.proj.weight. Files of transformer blocks alone cannot be used."
            )
        heads = attention_heads(checkpoint, found.width, None)
        arguments = _primus_arguments(found.width, found.depth, heads)
        arguments["patch_embed_size"] = list(found.token_size)
        arguments["scale_attn_inner"] = "eva.blocks.0.attn.norm.weight" in weights
        arguments["init_values"] = 0.1 if "eva.blocks.0.gamma_1" in weights else None
        return checked_spec("Primus", arguments, where, (*notes, f"attention heads: {heads}, going by the width"))
    if found.features_per_stage is None:
        raise CheckpointError(
            "The weights belong to no network that nnU-Net builds: expected names such as encoder.stages.0... (U-Net) or "
            f"eva.blocks.0... (Primus), found e.g. {', '.join(list(weights)[:3])}. Networks of other programs (MONAI's "
            "SwinUNETR, ViTs of 2D images) cannot be fine-tuned here."
        )
    return _unet(weights, found.family == "ResidualEncoderUNet", notes)


def contradiction(spec: NetworkSpec, weights: Mapping[str, Tensor]) -> str | None:
    """Why `weights` are not of the network `spec`, by the shapes of stem and encoder; None when they are."""
    layout = Layout(spec.build_empty(1, 2, spec.stride))
    have = {own_name(name): tuple(tensor.shape) for name, tensor in weights.items()}
    images = {own_name(name) for name in layout.input_projections}
    for entry in layout.entries:
        if entry.group not in ("stem", "encoder"):
            continue
        name, wanted = own_name(entry.name), tuple(entry.tensor.shape)
        shape = have.pop(name, None)
        if shape is None:
            return f"the weights have no {name}"
        if name in images and len(shape) == len(wanted):  # channels of the image are not the network's
            shape = (shape[0], wanted[1], *shape[2:])
        if shape != wanted:
            return f"{name} has shape {shape}, where that network has {wanted}"
    more = next((name for name in have if layout.group_of(name) == "encoder" and have[name]), None)
    return None if more is None else f"the weights have {more} besides"


def _primus_arguments(width: int, depth: int, heads: int) -> dict[str, Any]:
    size = {"embed_dim": width, "patch_embed_size": [8, 8, 8], "eva_depth": depth, "eva_numheads": heads}
    return {**size, **PRIMUS_DEFAULTS}


def _unet(weights: Mapping[str, Tensor], residual: bool, notes: tuple[str, ...]) -> NetworkSpec:
    found = recognise(weights)
    features, blocks = found.features_per_stage or (), found.blocks_per_stage or ()
    unit = "encoder.stages.{}.blocks.0.conv1" if residual else "encoder.stages.{}.0.convs.0"
    units = [unit.format(stage) for stage in range(len(features))]
    missing = next((u for u in units if f"{u}.conv.weight" not in weights), None)
    if missing is not None:
        raise CheckpointError(f"The weights look like a U-Net's, but have no {missing}.conv.weight. Is the file whole?")
    kernels = [list(weights[f"{u}.conv.weight"].shape[2:]) for u in units]
    axes, stages = len(kernels[0]), len(features)
    ups = [weights.get(f"decoder.transpconvs.{i}.weight") for i in reversed(range(stages - 1))]
    whole = all(up is not None for up in ups)
    steps = [list(up.shape[2:]) if up is not None and whole else [2] * axes for up in ups]
    if not whole:
        notes = (*notes, "strides: an encoder alone does not tell, 2 along every axis assumed")
    convs = [_count(weights, rf"decoder\.stages\.{i}\.convs\.(\d+)\.") for i in range(stages - 1)]
    batch_norm = f"{units[0]}.norm.running_mean" in weights
    arguments = {
        "n_stages": stages,
        "features_per_stage": features,
        "conv_op": f"Conv{axes}d",
        "kernel_sizes": kernels,
        "strides": [[1] * axes, *steps],
        "n_blocks_per_stage" if residual else "n_conv_per_stage": blocks,
        "n_conv_per_stage_decoder": convs if all(convs) else [1 if residual else 2] * (stages - 1),
        "conv_bias": f"{units[0]}.conv.bias" in weights,
        "norm_op": f"{'BatchNorm' if batch_norm else 'InstanceNorm'}{axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": f"{units[0]}.norm.weight" in weights},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    notes = (*notes, "activation: shapes do not tell, nnU-Net's LeakyReLU assumed")
    return checked_spec(
        "ResidualEncoderUNet" if residual else "PlainConvUNet", arguments, "the shapes of the weights", notes
    )


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(found[1]) for name in weights if (found := re.match(pattern, name))), default=-1)
