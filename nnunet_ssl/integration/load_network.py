"""A pre-trained network for one's own training loop."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ssl.checkpoints.adaptation.options import TransferOptions
from nnunet_ssl.checkpoints.canonical import canonical_weights
from nnunet_ssl.checkpoints.hub.resolve import Origin, resolve_source
from nnunet_ssl.checkpoints.networks.stated import network_of
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.integration.architecture import build_network
from nnunet_ssl.integration.pretrained_weights import put_into

PATCH = 160  # voxels per axis where neither plans nor checkpoint say; a U-Net takes any size


def load_network(
    weights: str | os.PathLike[str],
    *,
    plans: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    configuration: str = "3d_fullres",
    input_channels: int | None = None,
    output_channels: int = 2,
    patch_size: Sequence[int] | None = None,
    transfer: str | None = None,
    stem: str | None = None,
) -> nn.Module:
    """nnU-Net's network with pre-trained weights in it, on the CPU, in training mode, without deep supervision.

    weights: whatever -pretrained_weights takes: a file, a folder, an address on the Hugging Face Hub, a known model's name.
    plans: nnU-Net's plans (a dict or a file) whose network of `configuration` it shall be; None: the network that the
    checkpoint was made with. input_channels: of the images; None: those of the checkpoint. output_channels: classes, or
    whatever the network shall give out: its last layer begins anew where the checkpoint has another. patch_size: of the
    input [voxels per axis]; None: as the plans or the checkpoint say. transfer: "encoder" or "encoder+decoder"; None: what
    suits the pretext task. stem: of weights with one for every data set, its id or number, or "mean".

    What became of every weight: `network.nnunet_ssl_transfer_report`, printed by its `table()`. Raises CheckpointError
    where the file cannot be found or read, or too little of it fits.
    """
    source = resolve_source(weights)
    network, _ = build_with_weights(
        read_checkpoint(source.path),
        source.origin,
        plans=plans,
        configuration=configuration,
        input_channels=input_channels,
        output_channels=output_channels,
        patch_size=patch_size,
        transfer=transfer,
        stem=stem,
    )
    return network


def build_with_weights(
    checkpoint: Mapping[str, Any],
    origin: Origin,
    *,
    plans: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    configuration: str = "3d_fullres",
    input_channels: int | None = None,
    output_channels: int = 2,
    patch_size: Sequence[int] | None = None,
    transfer: str | None = None,
    stem: str | None = None,
) -> tuple[nn.Module, tuple[int, ...]]:
    """(network, patch size [voxels]) with the weights of a checkpoint that is open; arguments as in `load_network`."""
    own, info = canonical_weights(checkpoint, stem=stem)
    channels = input_channels or info["num_input_channels"] or 1
    network: Any
    notes: tuple[str, ...] = ()
    if plans is None:
        spec = network_of(checkpoint, own)
        notes = spec.notes
        size = tuple(patch_size or info["patch_size"] or (PATCH,) * spec.ndim)
        architecture = spec.architecture(size)
        network = get_network_from_plans(
            architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"],
            channels, output_channels, allow_init=True, deep_supervision=None if spec.is_primus else False,
        )  # fmt: skip
    else:
        whole = dict(plans) if isinstance(plans, Mapping) else read_json(os.fspath(plans))
        if configuration not in whole.get("configurations", {}):
            known = ", ".join(whole.get("configurations", {})) or "none"
            raise CheckpointError(f"The plans have no configuration {configuration!r}. Known: {known}.")
        manager = PlansManager(whole).get_configuration(configuration)
        size = tuple(patch_size or manager.patch_size)
        network = build_network(manager, channels, output_channels, deep_supervision=False, patch_size=size)
    network.nnunet_ssl_transfer = TransferOptions(
        transfer=transfer or info["transfer"], target_patch_size=size, stem=stem
    )
    report = put_into(network, checkpoint, origin)
    for note in notes:
        report.add_note(note)
    return network, tuple(int(s) for s in size)
