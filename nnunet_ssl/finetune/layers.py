"""The parts of a network that schedules tell apart: encoder and decoder, and the layers of the encoder."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from nnunet_ssl.checkpoints.adaptation.layout import Layout
from nnunet_ssl.checkpoints.adaptation.report import ENCODER_GROUPS


def encoder_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of stem, encoder and position embedding by name, once each.

    A U-Net's decoder registers the encoder a second time (`decoder.encoder`): `decoder.parameters()` is the whole network.
    Raises CheckpointError for a network that does not say where its encoder is.
    """
    return {
        e.name: e.tensor
        for e in Layout(network).entries
        if isinstance(e.tensor, nn.Parameter)
        and (e.group in ENCODER_GROUPS or e.name == "register_tokens")  # tokens of Primus that carry no voxels
    }


def encoder_modules(network: nn.Module) -> Iterator[nn.Module]:
    """Every module of stem and encoder."""
    layout = Layout(network)
    for root in {key.split(".")[0] for key in (layout.stem_key, layout.encoder_key)}:
        yield from network.get_submodule(root).modules()


def layers(network: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """(name, parameters) of every layer, from the output to the input.

    First the decoder with the final norm of a transformer, then every stage of a U-Net's encoder or block of a Primus,
    then the stem with position embedding and register tokens: the layers of BEiT (https://arxiv.org/abs/2106.08254).
    Raises CheckpointError for a network that does not say where its encoder is.
    """
    key = Layout(network).encoder_key
    is_transformer = hasattr(network.get_submodule(key), "blocks")
    prefix = f"{key}.blocks." if is_transformer else f"{key}."
    encoder = encoder_parameters(network)
    inside = {id(p) for n, p in encoder.items() if not n.startswith(f"{key}.norm.")}
    depths: dict[int, list[nn.Parameter]] = {}  # 0 is nearest to the image
    for name, parameter in encoder.items():
        number = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else ""
        if id(parameter) in inside:
            depths.setdefault(int(number) + 1 if number.isdigit() else 0, []).append(parameter)
    names = {n: f"{'block' if is_transformer else 'stage'} {n - 1}" if n else "stem" for n in depths}
    return [
        ("decoder", [p for p in network.parameters() if id(p) not in inside]),
        *((names[n], depths[n]) for n in sorted(depths, reverse=True)),
    ]
