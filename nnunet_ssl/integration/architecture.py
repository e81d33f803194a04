"""Building nnU-Net's networks from plans, Primus included."""

from __future__ import annotations

from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn


def is_primus(configuration: ConfigurationManager) -> bool:
    """Whether the plans ask for a Primus network."""
    return configuration.network_arch_class_name.rsplit(".", 1)[-1].startswith("Primus")


def build_network(
    configuration: ConfigurationManager,
    num_input_channels: int,
    num_output_channels: int,
    deep_supervision: bool,
    patch_size: tuple[int, ...] | None = None,
) -> nn.Module:
    """Network of a plans configuration.

    Primus knows no deep supervision and wants the patch size (`patch_size`, else the configuration's) as its input
    shape; nnU-Net's function would pass it the one and not the other.
    """
    kwargs: dict[str, Any] = dict(configuration.network_arch_init_kwargs)
    supervision: bool | None = deep_supervision
    if is_primus(configuration):
        kwargs["input_shape"] = tuple(patch_size or configuration.patch_size)
        supervision = None
    return get_network_from_plans(
        configuration.network_arch_class_name,
        kwargs,
        configuration.network_arch_init_kwargs_req_import,
        num_input_channels,
        num_output_channels,
        allow_init=True,
        deep_supervision=supervision,
    )
