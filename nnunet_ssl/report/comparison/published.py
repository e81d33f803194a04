"""Numbers of the papers beside one's own, for orientation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_ssl.comparison.protocols.protocol import Protocol, load_protocol
from nnunet_ssl.report.comparison.folder import Comparison
from nnunet_ssl.report.page import Page

NONE = "\N{EN DASH}"
BACKBONES = {"Primus": "Primus-M", "ResidualEncoderUNet": "ResEnc-L"}  # of ours -> the papers'


@dataclass(frozen=True)
class Published:
    """A row of a paper's table, as a column of ours; numbers as texts, from 0 to 1."""

    title: str
    backbone: str
    mean: str
    datasets: str  # how many data sets the mean is over
    rank: str
    by_dataset: Mapping[str, str]  # by the name of the user's data set

    def of(self, dataset: str) -> str:
        """The number for a data set, or a dash."""
        return self.by_dataset.get(dataset, NONE)


def protocol_of(comparison: Comparison) -> Protocol | None:
    """The protocol that the comparison's description names, None for none."""
    name = comparison.description.get("protocol")
    return load_protocol(str(name)) if name else None


def lacking(comparison: Comparison) -> list[str]:
    """The data sets of the protocol that the comparison has not, in a sentence; none without protocol."""
    protocol = protocol_of(comparison)
    names = [entry.name for entry in protocol.lacking(comparison.datasets)] if protocol else []
    return [f"{protocol.title}: {', '.join(names)}, which are not here."] if protocol and names else []


def published_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The rows of the protocol's tables, with means in percent as they were published."""
    protocol = protocol_of(comparison)
    return [dict(row) for row in protocol.published] if protocol else []


def about_protocol(page: Page, comparison: Comparison) -> None:
    """A section on the protocol: where it is from, what is not known of it, how far its numbers were checked."""
    protocol = protocol_of(comparison)
    if protocol is None:
        return
    page.heading(f"The protocol: {protocol.title}")
    page.paragraph(f"{protocol.paper}. Split: {protocol.split}.")
    page.items(protocol.notes)
    page.table(
        ["backbone", "start", "epochs", f"mean {protocol.metric}", "data sets", "average rank"],
        [
            [
                row["backbone"],
                row["start"],
                row["epochs"],
                f"{row['mean'] / 100:.4f}",
                row["datasets"],
                row["average_rank"] or NONE,
            ]
            for row in protocol.published
        ],
        f"Published numbers, from {'; '.join(dict.fromkeys(str(row['trust']) for row in protocol.published))}.",
    )


def published_columns(comparison: Comparison, metric: str) -> list[Published]:
    """The rows of the comparison's protocol for its kinds of network, where the metric is that of the paper; else none.

    Where the kind is not known there are no columns, for they would be many; the section on the protocol has all rows.
    """
    protocol = protocol_of(comparison)
    if protocol is None or metric != protocol.metric:
        return []
    own = {entry.name: dataset for entry, dataset in protocol.datasets_of(comparison.datasets).items()}
    kinds = _backbones(comparison)
    return [_column(row, own) for row in protocol.published if row["backbone"] in kinds]


def _backbones(comparison: Comparison) -> set[str]:
    """The papers' names of the kinds of network that weights were loaded into, or else that plans are named for."""
    families, plans = set(), ""
    for cell in comparison.cells:
        target = (cell.noted.get("transfer") or {}).get("target") or {}
        families.add(BACKBONES.get(str(target.get("family"))))
        plans += str(cell.noted.get("plans") or "").lower()
    named = {name for text, name in (("primus", "Primus-M"), ("resenc", "ResEnc-L")) if text in plans}
    return {name for name in families if name} or named


def _column(row: Mapping[str, Any], own: Mapping[str, str]) -> Published:
    numbers = {own[name]: f"{value / 100:.4f}" for name, value in (row.get("by_dataset") or {}).items() if name in own}
    rank = row.get("average_rank")
    return Published(
        str(row["start"]),
        str(row["backbone"]),
        f"{row['mean'] / 100:.4f}",
        f"of {row['datasets']} data sets",
        NONE if rank is None else f"{rank:.2f}",
        numbers,
    )
