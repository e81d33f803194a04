"""What became of every parameter when weights were put into a network."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from nnunet_ssl.checkpoints.networks.architecture import FAMILIES, Architecture, differences
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.quoting import printable

GROUPS = ("stem", "encoder", "position embedding", "decoder", "heads")
ENCODER_GROUPS = ("stem", "encoder", "position embedding")
MINIMUM_FRACTION = 0.5


@dataclass
class GroupCount:
    """Parameters of one group: loaded + adapted + fresh are the network's, left_out is what the source had besides."""

    loaded: int = 0
    adapted: int = 0
    fresh: int = 0
    left_out: int = 0

    @property
    def in_network(self) -> int:
        return self.loaded + self.adapted + self.fresh


@dataclass
class FreshReason:
    """Why some tensors of a group kept their fresh initialisation."""

    group: str
    reason: str
    example: str
    tensors: int = 0
    parameters: int = 0
    names: list[str] = field(default_factory=list)


@dataclass
class TransferReport:
    """Counts of parameters per group (aliased storage once), notes on what was adapted, reasons for what was not."""

    source: Architecture
    target: Architecture
    transfer: str
    channels: str
    source_info: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, GroupCount] = field(default_factory=lambda: {name: GroupCount() for name in GROUPS})
    notes: list[str] = field(default_factory=list)
    reasons: list[FreshReason] = field(default_factory=list)
    partly_fresh: list[str] = field(
        default_factory=list
    )  # names of parameters with channels the checkpoint knew nothing of

    @property
    def encoder_fraction(self) -> float:
        """Share of the parameters of stem, encoder and position embedding that came from the checkpoint, 0 to 1."""
        counts = [self.groups[name] for name in ENCODER_GROUPS]
        return sum(c.loaded + c.adapted for c in counts) / max(1, sum(c.in_network for c in counts))

    def add_note(self, note: str) -> None:
        """Keep a note, once."""
        if note not in self.notes:
            self.notes.append(note)

    def add_fresh(self, group: str, reason: str, name: str, parameters: int) -> None:
        """Count a tensor that keeps its fresh initialisation."""
        self.groups[group].fresh += parameters
        entry = next((r for r in self.reasons if (r.group, r.reason) == (group, reason)), None)
        if entry is None:
            entry = FreshReason(group, reason, name)
            self.reasons.append(entry)
        entry.tensors += 1
        entry.parameters += parameters
        entry.names.append(name)

    def fresh_in_encoder(self) -> list[str]:
        """Names of the parameters of stem, encoder and position embedding into which nothing was loaded, or not into all."""
        return [name for r in self.reasons if r.group in ENCODER_GROUPS for name in r.names] + self.partly_fresh

    def table(self) -> str:
        """Aligned text table, notes, reasons, and what to do where the match is poor."""
        header = ("parameters", "loaded", "adapted", "fresh", "left out")
        rows = [
            (name, f"{c.loaded:,}", f"{c.adapted:,}", f"{c.fresh:,}", f"{c.left_out:,}")
            for name, c in self.groups.items()
            if c.in_network or c.left_out
        ]
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in [header, *rows]
        ]
        lines.append(f"{self.encoder_fraction:.1%} of the encoder's parameters come from the checkpoint.")
        lines += [f"- {note}" for note in self.notes]
        lines += [
            f"- {r.group}: {r.parameters:,} parameters in {r.tensors} tensor{'s' * (r.tensors > 1)} fresh, {r.reason}, "
            f"e.g. {r.example}"
            for r in self.reasons
        ]
        if self.encoder_fraction < MINIMUM_FRACTION:
            lines.append(f"What to do: {self.next_step()}")
        return printable("\n".join(lines))

    def to_json(self) -> dict[str, Any]:
        """The report as plain data for json.dump."""
        return {
            "source": asdict(self.source),
            "target": asdict(self.target),
            "source_info": dict(self.source_info),
            "transfer": self.transfer,
            "channels": self.channels,
            "encoder_fraction": self.encoder_fraction,
            "groups": {name: asdict(count) for name, count in self.groups.items()},
            "notes": list(self.notes),
            "fresh": [asdict(reason) for reason in self.reasons],
        }

    def raise_if_poor(self, minimum: float = MINIMUM_FRACTION) -> None:
        """Raise CheckpointError when less than `minimum` (0 to 1) of the encoder came from the checkpoint."""
        if self.encoder_fraction >= minimum:
            return
        because = differences(self.source, self.target) or "; ".join(r.reason for r in self.reasons[:3])
        raise CheckpointError(
            f"Only {self.encoder_fraction:.1%} of the encoder's parameters fit (expected at least {minimum:.0%}): "
            f"{because}. {self.next_step()}"
        )

    def next_step(self) -> str:
        """The command that plans a network the checkpoint fits."""
        if self.source.family not in FAMILIES:
            return (
                f"nnU-Net builds no such network. Expected weights of {', '.join(FAMILIES)}; nnUNetv2_pretrain_models lists "
                "models that fit."
            )
        return (
            "Plan with the architecture of the checkpoint: nnUNetv2_plan_finetune -d DATASET_ID -pretrained_weights "
            "CHECKPOINT, and train with its plans (-p)."
        )
