"""The arguments of networks that files may name, and what their values may be.

Of an argument that a file names, one of three things becomes. Those in UNET_ARGUMENTS and PRIMUS_ARGUMENTS change what the
network computes, and are read and checked. Those in DROPPED cannot change what stem and encoder make of an image, so they
are dropped, and the report names them. All others are refused: a network built without an argument that nobody here knows
would run, and might compute something else than the one whose weights these are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

# What nnU-Net imports by name from plans: the last part of the name -> the name we write.
LAYERS: dict[str, dict[str, str]] = {
    "conv_op": {name: f"torch.nn.modules.conv.{name}" for name in ("Conv2d", "Conv3d")},
    "norm_op": {
        name: f"torch.nn.modules.{module}.{name}"
        for module, names in {
            "instancenorm": ("InstanceNorm2d", "InstanceNorm3d"),
            "batchnorm": ("BatchNorm2d", "BatchNorm3d"),
        }.items()
        for name in names
    },
    "dropout_op": {name: f"torch.nn.modules.dropout.{name}" for name in ("Dropout2d", "Dropout3d")},
    "nonlin": {name: f"torch.nn.{name}" for name in ("LeakyReLU", "ReLU", "GELU", "SiLU", "ELU", "Mish")},
}
MOST = {"stages": 16, "blocks": 64, "channels": 8192, "axis": 512}  # beyond these no file is meant seriously


def _integer(largest: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= largest:
            raise ValueError(f"expected a whole number from 1 to {largest}")
        if value != int(value):
            raise ValueError("expected a whole number")
        return int(value)

    return read


def _integers(largest: int) -> Callable[[Any], Any]:
    """One number, a list of numbers, or a list of such lists."""

    def read(value: Any, depth: int = 2) -> Any:
        if isinstance(value, (list, tuple)):
            if len(value) > MOST["blocks"] or depth == 0:
                raise ValueError("the list is too long or too deep")
            return [read(v, depth - 1) for v in value]
        return _integer(largest)(value)

    return read


def _number(value: Any) -> float | None:
    if isinstance(value, (list, tuple)) and len(value) == 1:  # PrimusX files hold init_values as a list of one
        value = value[0]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or abs(value) > 1e3:
        raise ValueError("expected a number")
    return value


def _rate(value: Any) -> float:
    number = _number(value)
    if number is None or not 0 <= number < 1:
        raise ValueError("expected a rate from 0 to below 1")
    return number


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _layer(key: str) -> Callable[[Any], str | None]:
    def read(value: Any) -> str | None:
        if value is None and key != "conv_op":
            return None
        short = str(value).rpartition(".")[2]
        if short not in LAYERS[key] or not (str(value) == short or str(value).startswith("torch.nn.")):
            raise ValueError(f"expected one of {', '.join(LAYERS[key])}; names from files are never imported")
        return LAYERS[key][short]

    return read


def _options(value: Any) -> dict[str, Any] | None:
    """Plain arguments of a layer, such as {"eps": 1e-5, "affine": True}."""
    if value is None:
        return None
    known = {
        "eps": _number,
        "momentum": _number,
        "affine": _boolean,
        "track_running_stats": _boolean,
        "inplace": _boolean,
        "negative_slope": _number,
        "p": _rate,
    }
    if not isinstance(value, Mapping) or not set(value) <= set(known):
        raise ValueError(f"expected nothing but {', '.join(known)}")
    return {key: known[key](v) for key, v in value.items()}


UNET_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "n_stages": _integer(MOST["stages"]),
    "features_per_stage": _integers(MOST["channels"]),
    "kernel_sizes": _integers(9),
    "strides": _integers(8),
    "n_blocks_per_stage": _integers(MOST["blocks"]),
    "n_conv_per_stage": _integers(MOST["blocks"]),
    "n_conv_per_stage_decoder": _integers(MOST["blocks"]),
    "conv_bias": _boolean,
    **{key: _layer(key) for key in LAYERS},
    **{f"{key}_kwargs": _options for key in ("norm_op", "dropout_op", "nonlin")},
    "nonlin_first": _boolean,
}
PRIMUS_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "embed_dim": _integer(MOST["channels"]),
    "patch_embed_size": _integers(MOST["blocks"]),
    "eva_depth": _integer(MOST["blocks"]),
    "eva_numheads": _integer(MOST["blocks"]),
    "input_shape": _integers(MOST["axis"] * 4),
    "num_register_tokens": lambda v: 0 if v == 0 else _integer(MOST["blocks"])(v),
    "use_rot_pos_emb": _boolean,
    "use_abs_pos_embed": _boolean,
    "mlp_ratio": _number,
    "drop_path_rate": _rate,
    "proj_drop_rate": _rate,
    "attn_drop_rate": _rate,
    "init_values": _number,
    "scale_attn_inner": _boolean,
}

_OF_IMAGES = "channels come from the images, classes from the labels"
_OF_DECODER = "the pre-training's decoder is not part of the network"
DROPPED: dict[str, str] = {  # with the reason
    "input_channels": _OF_IMAGES,
    "in_channels": _OF_IMAGES,
    "output_channels": _OF_IMAGES,
    "num_classes": _OF_IMAGES,
    "deep_supervision": "the trainer decides",
    "decoder_eva_depth": _OF_DECODER,
    "decoder_eva_numheads": _OF_DECODER,
    "decoder_eva_embed_dim": _OF_DECODER,
    # Of an MAE that leaves hidden tokens out. Fine-tuned with it, a network would see a few tokens of every image, and with some
    # versions of timm it does not run at all.
    "patch_drop_rate": "hides tokens, in pre-training alone",
}
