"""Put the weights of any checkpoint into a network, and say what became of every parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_ssl.checkpoints.adaptation.channels import CHANNEL_MODES
from nnunet_ssl.checkpoints.adaptation.fit import DoesNotFitError, Fit
from nnunet_ssl.checkpoints.adaptation.layout import Layout
from nnunet_ssl.checkpoints.adaptation.report import TransferReport
from nnunet_ssl.checkpoints.aliases import align_names, own_name, resolve_aliases
from nnunet_ssl.checkpoints.canonical import canonical_weights
from nnunet_ssl.checkpoints.networks.architecture import recognise
from nnunet_ssl.checkpoints.read import network_weights

TRANSFERS = ("encoder", "encoder+decoder")


def adapt_checkpoint(
    checkpoint: Mapping[str, Any],
    target: nn.Module,
    *,
    transfer: str | None = None,
    channels: str = "repeat",
    target_patch_size: Sequence[int] | None = None,
    target_channel_names: Sequence[str] | None = None,
    image_channels: int | None = None,
    stem: str | None = None,
) -> tuple[dict[str, Tensor], TransferReport]:
    """`adapt` for a whole checkpoint as `read_checkpoint` returns it; `transfer` None means its method's default.

    stem: which one, of a checkpoint with a stem for every data set (`choose_stem`).
    """
    weights, info = canonical_weights(
        checkpoint, num_heads=_num_heads(target), stem=stem, target_channel_names=target_channel_names
    )
    return adapt(
        weights,
        target,
        transfer=transfer or info["transfer"],
        channels=channels,
        source_patch_size=info["patch_size"],
        target_patch_size=target_patch_size,
        target_channel_names=target_channel_names,
        image_channels=image_channels,
        source_info=info,
    )


def adapt(
    source: Mapping[str, Tensor],
    target: nn.Module,
    *,
    transfer: str = "encoder",
    channels: str = "repeat",
    source_patch_size: Sequence[int] | None = None,
    target_patch_size: Sequence[int] | None = None,
    target_channel_names: Sequence[str] | None = None,
    image_channels: int | None = None,
    source_info: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Tensor], TransferReport]:
    """State dict for `target` (complete, loads strictly, aliases equal) with what fits from `source`, and the report.

    `transfer`: "encoder" (with stem and position embedding) or "encoder+decoder" (also what of the decoder has equal
    shapes). Segmentation layers are never transferred. `channels`: see `fit_channels`; "random" leaves the whole stem
    fresh when the number of input channels differs, "by_name" gives every channel in `target_channel_names` the weights
    of the source's channel of that name (source_info["channel_names"]; see `mixing_by_name`). Where only the first
    `image_channels` input channels are images, as in cascades, the others begin at 0 and count as fresh. Patch sizes in
    voxels are needed where the position embeddings differ in length. `target` itself is not changed. Raises ValueError
    for unknown options, CheckpointError for a network without an encoder, an unknown token grid, unnamed channels where
    names are needed, and weights that are not finite or no floating point numbers.
    """
    if transfer not in TRANSFERS:
        raise ValueError(f"transfer is one of {', '.join(TRANSFERS)}, found {transfer!r}.")
    if channels not in CHANNEL_MODES:
        raise ValueError(f"channels is one of {', '.join(CHANNEL_MODES)}, found {channels!r}.")
    info = dict(source_info or {})
    layout = Layout(target)
    weights = resolve_aliases(align_names(network_weights(source), layout.encoder_names()))
    report = TransferReport(
        source=recognise(weights),
        target=recognise(target.state_dict()),
        transfer=transfer,
        channels=channels,
        source_info=info,
    )
    for note in info.get("notes", ()):
        report.add_note(note)
    patch_sizes = source_patch_size or info.get("patch_size"), target_patch_size
    names = info.get("channel_names"), target_channel_names
    fit = Fit(layout, weights, transfer, channels, *patch_sizes, names, image_channels, report)
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    for entry in layout.entries:
        size = entry.tensor.numel() if entry.is_parameter else 0
        count = report.groups[entry.group]
        try:
            value, adapted = fit(entry)
        except DoesNotFitError as reason:
            if entry.is_parameter:
                report.add_fresh(entry.group, str(reason), entry.name, size)
            value = entry.tensor.detach()
        else:
            used.update(entry.names)
            if adapted:
                count.adapted += size
            else:
                count.loaded += size
        state.update(dict.fromkeys(entry.names, value))
    _count_left_out(weights, used, layout, report)
    return {name: state[name] for name in target.state_dict()}, report


def _count_left_out(weights: Mapping[str, Tensor], used: set[str], layout: Layout, report: TransferReport) -> None:
    """Count what of the source went nowhere, copies once."""
    known = {name: entry for entry in layout.entries for name in entry.names}
    counted = {own_name(name) for name in used}
    for name, tensor in weights.items():
        key = own_name(name)
        if key in counted or (name in known and not known[name].is_parameter):
            continue
        counted.add(key)
        report.groups[layout.group_of(key)].left_out += tensor.numel()


def _num_heads(network: nn.Module) -> int | None:
    blocks = getattr(getattr(network, "eva", None), "blocks", None)
    return int(blocks[0].attn.num_heads) if blocks else None
