"""From plans to the method that is trained: the network, wrapped for the pretext task."""

from __future__ import annotations

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.integration.architecture import build_network
from nnunet_ssl.methods import Method
from nnunet_ssl.views.spec import Views


def build_method(
    method_class: type[Method], config: Any, configuration: ConfigurationManager, channels: int, views: Views
) -> Method:
    """A method around the network of the plans, with fresh weights, for images of so many channels.

    Raises BackboneError for patches that do not fit the network or the method.
    """
    network = build_network(
        configuration,
        channels,
        method_class.output_channels(config, channels),
        deep_supervision=False,
        patch_size=views.network_size,
    )
    return method_class(wrap_network(network, views.network_size, method_class.crop_setting), config)
