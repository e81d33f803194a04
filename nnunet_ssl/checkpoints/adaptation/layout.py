"""The parts of a network as the transfer of weights sees them: stem, encoder, position embedding, decoder, heads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from nnunet_ssl.checkpoints.adaptation.report import ENCODER_GROUPS
from nnunet_ssl.errors import CheckpointError

PLACE_KEYS = ("key_to_encoder", "key_to_stem", "keys_to_in_proj")


@dataclass(frozen=True)
class Entry:
    """One tensor of a network under all its names, its own name first."""

    names: tuple[str, ...]
    tensor: Tensor
    module: nn.Module  # the one that owns the tensor
    group: str
    is_parameter: bool  # buffers travel along, but are not counted

    @property
    def name(self) -> str:
        return self.names[0]


class Layout:
    """Groups of a network of dynamic-network-architectures (PlainConvUNet, ResidualEncoderUNet, Primus).

    Raises CheckpointError for networks that do not say where their encoder, stem and input projection are.
    """

    def __init__(self, network: nn.Module) -> None:
        missing = [key for key in PLACE_KEYS if not hasattr(network, key)]
        if missing:
            raise CheckpointError(
                f"{type(network).__name__} does not say where its encoder is: it has no {', '.join(missing)}. Expected "
                "nnU-Net's PlainConvUNet, ResidualEncoderUNet or Primus, not wrapped by DDP or torch.compile."
            )
        self.network = network
        self.encoder_key, self.stem_key = str(network.key_to_encoder), str(network.key_to_stem)
        self.position_key: str | None = getattr(network, "key_to_lpe", None)
        self.input_projections = [f"{key}.weight" for key in network.keys_to_in_proj]  # type: ignore[union-attr]
        decode = getattr(getattr(network, "up_projection", None), "decode", None)
        self.last_decode = f"up_projection.decode.{len(decode) - 1}" if isinstance(decode, nn.Sequential) else None
        self.entries = list(self._read_entries())

    def group_of(self, name: str) -> str:
        """The group of a state dict's name; names of things the network does not have count by what they begin with."""
        if name == self.position_key:
            return "position embedding"
        if _is_under(name, self.stem_key):
            return "stem"
        if _is_under(name, self.encoder_key):
            return "encoder"
        if ".seg_layers." in name or (self.last_decode and _is_under(name, self.last_decode)):
            return "heads"
        return "decoder" if _is_under(name, "decoder") or hasattr(self.network, name.split(".")[0]) else "heads"

    def encoder_names(self) -> set[str]:
        """All names of the tensors of stem, encoder and position embedding, without the decoder's copies."""
        entries = (e for e in self.entries if e.group in ENCODER_GROUPS)
        return {name for e in entries for name in e.names if not name.startswith("decoder.")}

    def _read_entries(self) -> Iterable[Entry]:
        state = self.network.state_dict(keep_vars=True)
        aliases: dict[int, list[str]] = {}
        for name, tensor in state.items():
            aliases.setdefault(id(tensor), []).append(name)
        for names in aliases.values():
            names.sort(key=lambda name: (name.startswith("decoder.encoder."), ".all_modules." in name))
            tensor = state[names[0]]
            module = self.network.get_submodule(names[0].rpartition(".")[0])
            yield Entry(tuple(names), tensor, module, self.group_of(names[0]), isinstance(tensor, nn.Parameter))


def _is_under(name: str, key: str) -> bool:
    return name == key or name.startswith(key + ".")
