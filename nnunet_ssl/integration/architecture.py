"""Building nnU-Net's networks from plans, Primus included; what plans name is never imported, but looked up in our list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_ssl.checkpoints.networks.spec import NetworkSpec, checked_spec
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.integration.opening import refuses_unsafe, warn_once


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
    shape; nnU-Net's function would pass it the one and not the other. Raises CheckpointError for classes and arguments that
    are not on the list of nnunet_ssl/checkpoints/networks.
    """
    architecture = spec_of(configuration.configuration, "the plans").architecture(
        patch_size or configuration.patch_size
    )
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        num_input_channels,
        num_output_channels,
        allow_init=True,
        deep_supervision=None if is_primus(configuration) else deep_supervision,
    )


def spec_of(configuration: Mapping[str, Any], where: str) -> NetworkSpec:
    """The network of a configuration of plans, checked against our list; raises CheckpointError for every other one."""
    architecture = configuration.get("architecture")
    if not isinstance(architecture, Mapping) or not isinstance(architecture.get("arch_kwargs"), Mapping):
        raise CheckpointError(f"{where} describes no network: expected an architecture with arch_kwargs. Plan anew.")
    return checked_spec(str(architecture.get("network_class_name")), architecture["arch_kwargs"], where)


def build_for_stock(
    stock: Callable[..., nn.Module], arch_class_name: str, arch_kwargs: Mapping[str, Any], *args: Any, **kwargs: Any
) -> nn.Module:
    """nnU-Net's `get_network_from_plans`: its trainers import whatever the plans name, which is said or, on request, refused."""
    try:
        checked_spec(arch_class_name, arch_kwargs, "the plans")
    except CheckpointError as error:
        if refuses_unsafe():
            raise
        warn_once(f"nnU-Net imports and calls what its plans name as a network ({str(error)[:300]})")
    return stock(arch_class_name, arch_kwargs, *args, **kwargs)
