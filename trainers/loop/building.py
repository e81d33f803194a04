"""From plans to the method that is trained: the network, wrapped for the pretext task."""

from __future__ import annotations

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_ssl.backbones import wrap_network
from nnunet_ssl.backbones.blockwise import compute_by_product
from nnunet_ssl.backbones.channels_last import leave_biases_out, use_channels_last
from nnunet_ssl.backbones.norms import keep_layout
from nnunet_ssl.integration.architecture import build_network
from nnunet_ssl.methods.base import Method
from nnunet_ssl.views.spec import Views


def build_method(
    method_class: type[Method],
    config: Any,
    configuration: ConfigurationManager,
    channels: int,
    views: Views,
    channels_last: bool = False,
    plain: bool = False,
) -> Method:
    """A method around the network of the plans, with fresh weights, for images of so many channels.

    channels_last: whether it is going to be compiled for a GPU. plain: layers compute as they are, not as is cheapest. Raises
    BackboneError for patches that do not fit the network or the method.
    """
    network = build_network(
        configuration,
        channels,
        method_class.output_channels(config, channels),
        deep_supervision=False,
        patch_size=views.network_size,
    )
    backbone = wrap_network(network, views.network_size, method_class.crop_setting)
    channels_last = channels_last and backbone.kind == "unet"
    # Before a method that replaces the forward passes of layers, as spark3d does, has seen them.
    if not plain:
        compute_by_product(network)
    if channels_last:
        use_channels_last(network)
    method = method_class(backbone, config)
    if not plain:
        compute_by_product(method)  # of the method's own heads
        keep_layout(method)
    if channels_last:
        leave_biases_out(method)
    return method
