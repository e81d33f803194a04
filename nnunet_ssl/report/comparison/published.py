"""Numbers of the papers beside one's own, for orientation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_ssl.comparison.protocols.protocol import Protocol, load_protocol
from nnunet_ssl.report.comparison.folder import Comparison

NONE = "\N{EN DASH}"


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


def published_columns(comparison: Comparison, metric: str) -> list[Published]:
    """The rows of the comparison's protocol for its kind of network, where the metric is that of the paper; else none."""
    name = comparison.description.get("protocol")
    if not name:
        return []
    protocol = load_protocol(str(name))
    if metric != protocol.metric:
        return []
    own = {entry.name: dataset for entry, dataset in protocol.datasets_of(comparison.datasets).items()}
    kinds = _backbones(comparison, protocol)
    return [_column(row, own) for row in protocol.published if row["backbone"] in kinds]


def _backbones(comparison: Comparison, protocol: Protocol) -> set[str]:
    """The paper's backbones whose name stands in the plans of some cell; all where none does."""
    plans = " ".join(str(cell.noted.get("plans") or "") for cell in comparison.cells).lower()
    known = {str(row["backbone"]) for row in protocol.published}
    found = {name for name in known if name.lower().replace("-", "")[:6] in plans.replace("-", "")}
    return found or known


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
