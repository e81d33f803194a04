"""A network in the form of nnU-Net's plans, made of names from our own list: nothing a file says is ever imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nnunet_ssl.checkpoints.adaptation_plan import PRIMUS_PRESETS, RESENC_L
from nnunet_ssl.checkpoints.networks.arguments import DROPPED, LAYERS, PRIMUS_ARGUMENTS, UNET_ARGUMENTS
from nnunet_ssl.errors import CheckpointError

NETWORKS = {
    "PlainConvUNet": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "ResidualEncoderUNet": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "Primus": "dynamic_network_architectures.architectures.primus.Primus",
}
FORMER_NAMES = ("dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet",)  # in older plans


@dataclass(frozen=True)
class NetworkSpec:
    """A network class of dynamic-network-architectures and its arguments, all of them checked."""

    name: str
    kwargs: Mapping[str, Any]
    source: str  # where it was read, in words
    notes: tuple[str, ...] = field(default=())

    @property
    def is_primus(self) -> bool:
        return self.name == "Primus"

    @property
    def ndim(self) -> int:
        """Axes of the images it takes: 2 or 3."""
        return 3 if self.is_primus or str(self.kwargs["conv_op"]).endswith("3d") else 2

    @property
    def stride(self) -> tuple[int, ...]:
        """Voxels per position of the coarsest feature map, per axis; patch sizes are multiples of it."""
        if self.is_primus:
            return tuple(self.kwargs["patch_embed_size"])
        stride = [1] * self.ndim
        for step in self.kwargs["strides"]:
            stride = [s * t for s, t in zip(stride, step, strict=True)]
        return tuple(stride)

    def architecture(self, patch_size: Sequence[int]) -> dict[str, Any]:
        """The "architecture" entry of a configuration with patches of `patch_size` voxels."""
        kwargs = dict(self.kwargs)
        if self.is_primus:
            kwargs["input_shape"] = list(patch_size)
        imported = [key for key in LAYERS if key in kwargs]
        return {"network_class_name": NETWORKS[self.name], "arch_kwargs": kwargs, "_kw_requires_import": imported}

    def __str__(self) -> str:
        if self.is_primus:
            size = tuple(self.kwargs[key] for key in ("embed_dim", "eva_depth", "eva_numheads"))
            name = PRIMUS_PRESETS.get(size, "Primus")
            return f"{name} (width {size[0]}, depth {size[1]}, {size[2]} head{'s' * (size[2] > 1)})"
        sizes = {key: list(self.kwargs.get(key, ())) for key in ("features_per_stage", "n_blocks_per_stage")}
        name = "ResEncL" if sizes == {key: RESENC_L[key] for key in sizes} and self.ndim == 3 else self.name
        return (
            f"{name}{'' if self.ndim == 3 else ' in 2D'} (features {', '.join(map(str, sizes['features_per_stage']))})"
        )

    def build_empty(self, num_input_channels: int, num_classes: int, patch_size: Sequence[int]) -> nn.Module:
        """The network on torch's "meta" device: names and shapes without memory."""
        kwargs = dict(self.architecture(patch_size)["arch_kwargs"])
        if self.is_primus:
            from dynamic_network_architectures.architectures.primus import Primus

            with torch.device("meta"):
                return Primus(input_channels=num_input_channels, num_classes=num_classes, **kwargs)
        from dynamic_network_architectures.architectures import unet

        for key in LAYERS:
            name = str(kwargs.get(key)).rpartition(".")[2]
            kwargs[key] = None if kwargs.get(key) is None else getattr(nn, name)
        networks = {"PlainConvUNet": unet.PlainConvUNet, "ResidualEncoderUNet": unet.ResidualEncoderUNet}
        with torch.device("meta"):
            return networks[self.name](input_channels=num_input_channels, num_classes=num_classes, **kwargs)


def checked_spec(name: str, kwargs: Mapping[str, Any], source: str, notes: Sequence[str] = ()) -> NetworkSpec:
    """The spec of a network a file describes; raises CheckpointError for every name or number not on our lists.

    Its notes name the arguments that were dropped, see `arguments`.
    """
    where = f"The architecture in {source}"
    short = str(name).rpartition(".")[2]
    if short not in NETWORKS or name not in (short, NETWORKS[short], *FORMER_NAMES):
        raise CheckpointError(
            f"{where} is {str(name)[:100]!r}, which is none of {', '.join(NETWORKS)}. Classes named by files are looked up "
            "in this list and never imported. Fine-tune networks of other kinds with the program they come from."
        )
    readers = PRIMUS_ARGUMENTS if short == "Primus" else UNET_ARGUMENTS
    dropped = [key for key in kwargs if key not in readers and key in DROPPED]
    if dropped:
        told = ", ".join(f"{key} {str(kwargs[key])[:20]} ({DROPPED[key]})" for key in dropped)
        notes = [*notes, f"left out of the network: {told}"]
        kwargs = {key: value for key, value in kwargs.items() if key not in dropped}
    unknown = sorted(str(key)[:50] for key in kwargs if key not in readers)
    if unknown:
        raise CheckpointError(
            f"{where} has arguments that are not on our list: {', '.join(unknown[:8])}. Known: {', '.join(readers)}."
        )
    values: dict[str, Any] = {}
    for key, value in kwargs.items():
        try:
            values[key] = readers[key](value)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{where} has {key} = {str(value)[:100]!r}: {error}.") from error
    values.pop("input_shape", None)  # of the new patch, not of the old one
    try:
        spec = _consistent(short, values, source, tuple(notes))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where} does not describe a {short}: {error if isinstance(error, ValueError) else f'{error} is missing'}."
        ) from error
    return spec


def _consistent(name: str, values: dict[str, Any], source: str, notes: tuple[str, ...]) -> NetworkSpec:
    """The spec, every per-stage entry a full list; raises KeyError and ValueError."""
    if name == "Primus":
        for key in ("embed_dim", "patch_embed_size", "eva_depth", "eva_numheads"):
            values[key]
        size = values["patch_embed_size"]
        values["patch_embed_size"] = [size] * 3 if isinstance(size, int) else size
        if len(values["patch_embed_size"]) != 3:
            raise ValueError("patch_embed_size must have 3 numbers")
        if values["embed_dim"] % (6 * values["eva_numheads"]):
            raise ValueError("the width of a head must be a multiple of 6")
        return NetworkSpec(name, values, source, notes)
    stages, axes = values["n_stages"], 3 if values["conv_op"].endswith("3d") else 2
    plain = name == "PlainConvUNet"
    if ("n_blocks_per_stage" if plain else "n_conv_per_stage") in values:
        raise ValueError("its blocks belong to the other kind of U-Net")
    lengths = dict.fromkeys(("features_per_stage", "kernel_sizes", "strides"), stages)
    lengths["n_conv_per_stage" if plain else "n_blocks_per_stage"] = stages
    lengths["n_conv_per_stage_decoder"] = stages - 1
    for key, length in lengths.items():
        value = values[key] if isinstance(values[key], list) else [values[key]] * length
        if key in ("kernel_sizes", "strides"):
            value = [v if isinstance(v, list) else [v] * axes for v in value]
        wanted_rank = [axes] * len(value) if key in ("kernel_sizes", "strides") else None
        if len(value) != length or (wanted_rank and [len(v) for v in value] != wanted_rank):
            raise ValueError(f"{key} must have {length} entries{f' of {axes} numbers' if wanted_rank else ''}")
        values[key] = value
    for key in ("norm_op", "dropout_op"):
        if values.get(key) is not None and not values[key].endswith(f"{axes}d"):
            raise ValueError(f"{key} must be one for {axes} axes")
    return NetworkSpec(name, values, source, notes)
