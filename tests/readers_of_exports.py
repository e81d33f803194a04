"""What other programs do with an exported checkpoint, rule by rule, as far as their networks and weights go.

Written from what their code was seen to ask for (November 2026), not taken from it: nnU-Net's development branch
(`like_nnssl` and its trainers), TaWald/nnUNet (which loads the same way, see checkpoints/export/downstream.py), nnDetection's
branch `finetuning`, GloViTa. Each returns the network with the weights in it, and raises what its program would raise.
"""

from __future__ import annotations

import pydoc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from dynamic_network_architectures.architectures import primus, unet
from torch import Tensor, nn

from nnunet_ssl.checkpoints.adaptation_plan import PRIMUS_PRESETS, RESENC_L
from nnunet_ssl.checkpoints.export.downstream import load_like_downstream

SIZES = {name: size for size, name in PRIMUS_PRESETS.items()}


def _unet(name: str, kwargs: Mapping[str, Any], imported: Sequence[str], channels: int) -> nn.Module:
    """As nnU-Net builds it: what is to be imported is named, and has to be among the arguments."""
    arguments = dict(kwargs)
    for key in imported:
        arguments[key] = None if arguments[key] is None else pydoc.locate(arguments[key])
    return getattr(unet, name.rpartition(".")[2])(
        input_channels=channels, num_classes=2, deep_supervision=False, **arguments
    )


def _preset(name: str, channels: int, patch: Sequence[int]) -> nn.Module:
    if name == "ResEncL":
        return _unet("ResidualEncoderUNet", RESENC_L, ["conv_op", "norm_op", "nonlin"], channels)
    width, depth, heads = SIZES[name]
    size = {"embed_dim": width, "eva_depth": depth, "eva_numheads": heads, "patch_embed_size": (8, 8, 8)}
    return primus.Primus(
        channels, num_classes=2, input_shape=tuple(patch), init_values=0.1, scale_attn_inner=True, **size
    )


def nnunet_development(checkpoint: Mapping[str, Any], channels: int, patch: Sequence[int]) -> nn.Module:
    """PretrainedTrainer for U-Nets and presets, PretrainedTrainer_Primusx for a Primus with arguments."""
    plan = checkpoint["nnssl_adaptation_plan"]
    for key in ("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe", "recommended_downstream_patchsize"):
        plan[key]
    architecture = plan["architecture_plans"]
    name, kwargs = architecture["arch_class_name"], architecture["arch_kwargs"]
    if not kwargs:
        network = _preset(name, channels, patch)
    elif name.endswith(("PlainConvUNet", "ResidualEncoderUNet")):
        network = _unet(name, kwargs, architecture["arch_kwargs_requiring_import"], channels)
    else:
        size = [kwargs[k] for k in ("embed_dim", "patch_embed_size")]
        heads = [kwargs[k] for k in ("encoder_eva_depth", "encoder_eva_numheads")]
        scale = kwargs["init_values"]
        network = primus.Primus(
            channels, *size, 2, *heads, tuple(patch), drop_path_rate=0.2, scale_attn_inner=kwargs["scale_attn_inner"],
            init_values=scale[0] if isinstance(scale, list) else scale,
        )  # fmt: skip
    load_like_downstream(checkpoint, network, channels, patch)
    return network


def glovita(checkpoint: Mapping[str, Any], channels: int, _patch: Sequence[int]) -> nn.Module:
    """The patch is the pre-training's: position embeddings are not interpolated, and all encoder tensors must be there."""
    plan, weights = checkpoint["nnssl_adaptation_plan"], checkpoint["network_weights"]
    architecture = plan["architecture_plans"]
    name, kwargs = architecture["arch_class_name"], architecture["arch_kwargs"]
    if kwargs is None:
        pretraining = next(iter(plan["pretrain_plan"]["configurations"].values()))
        network = _preset(name, channels, pretraining["patch_size"])
    elif name.rpartition(".")[2] in ("Primus", "PrimusX"):
        known = ("embed_dim", "patch_embed_size", "eva_depth", "eva_numheads", "input_shape", "use_rot_pos_emb")
        known += ("use_abs_pos_embed", "drop_path_rate", "init_values", "scale_attn_inner", "num_register_tokens")
        given = {"use_rot_pos_emb": True, "use_abs_pos_embed": True, "drop_path_rate": 0.2, "init_values": 0.1}
        given |= {"scale_attn_inner": True, "num_register_tokens": 0}
        given |= {key.removeprefix("encoder_"): value for key, value in kwargs.items()}
        given = {key: value for key, value in given.items() if key in known}
        given["input_shape"], given["patch_embed_size"] = tuple(given["input_shape"]), tuple(given["patch_embed_size"])
        network = primus.Primus(channels, num_classes=2, **given)
    else:
        network = _unet(name, kwargs, architecture["arch_kwargs_requiring_import"] or [], channels)
    places = (plan["key_to_stem"], plan["key_to_encoder"])
    taken = {key: tensor for key, tensor in weights.items() if key.startswith(places)}
    if channels > plan["pretrain_num_input_channels"]:
        _repeat(taken, plan["keys_to_in_proj"], channels)
    state = network.state_dict()
    for key in (key for key in state if key.startswith(places)):
        assert key in taken, f"{key} is missing"
        assert state[key].shape == taken[key].shape, key
    network.load_state_dict({**state, **{key: tensor for key, tensor in taken.items() if key in state}})
    return network


def nndetection(checkpoint: Mapping[str, Any], channels: int, patch: Sequence[int]) -> nn.Module:
    """`--load_adapt_plan`: the arguments replace those of its configuration, which has nnssl's names for a Primus'."""
    plan, weights = checkpoint["nnssl_adaptation_plan"], checkpoint["network_weights"]
    architecture = plan["architecture_plans"]
    name, kwargs = architecture["arch_class_name"], architecture["arch_kwargs"]
    next(iter(plan["pretrain_plan"]["configurations"].values()))["patch_size"]
    if kwargs is None:
        network = _preset(name, channels, patch)
    elif name.rpartition(".")[2] in ("Primus", "PrimusX"):
        keys = ("embed_dim", "patch_embed_size", "encoder_eva_depth", "encoder_eva_numheads", "drop_path_rate")
        size = {key.removeprefix("encoder_"): kwargs[key] for key in (*keys, "init_values", "scale_attn_inner")}
        network = primus.Primus(channels, num_classes=2, input_shape=tuple(patch), **size)
    else:
        network = _unet(name, kwargs, architecture["arch_kwargs_requiring_import"], channels)
    if hasattr(network, "eva"):
        load_like_downstream(checkpoint, network, channels, patch)
        return network
    for place, own in ((plan["key_to_encoder"], "encoder.stages"), (plan["key_to_stem"], "encoder.stem")):
        taken = {key: tensor for key, tensor in weights.items() if key.startswith(place)}
        if own == "encoder.stem" and channels > plan["pretrain_num_input_channels"]:
            _repeat(taken, plan["keys_to_in_proj"], channels)
        below = {key.removeprefix(f"{place}."): tensor for key, tensor in taken.items()}
        network.get_submodule(own).load_state_dict(below)
    return network


def _repeat(taken: dict[str, Tensor], keys: Sequence[str], channels: int) -> None:
    first = taken[f"{keys[0]}.weight"]
    repeated = first.repeat(1, channels, *[1] * (first.ndim - 2)) / channels
    taken.update({f"{key}.weight": repeated for key in keys})


READERS: dict[str, Callable[[Mapping[str, Any], int, Sequence[int]], nn.Module]] = {
    "nnU-Net's development branch": nnunet_development,
    "GloViTa": glovita,
    "nnDetection": nndetection,
}


def encoder_of(network: Any) -> dict[str, Tensor]:
    """Names and values of stem and encoder."""
    places = (network.key_to_encoder, network.key_to_stem)
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith(places)}


def same_encoder(network: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether all of stem and encoder are those of `weights`."""
    return all(torch.equal(tensor, weights[name]) for name, tensor in encoder_of(network).items())
