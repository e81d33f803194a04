"""What is known of a checkpoint, as data and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from nnunet_ssl.checkpoints.stems import listed
from nnunet_ssl.quoting import cell, printable

UNSTATED = "not stated in the file"


@dataclass(frozen=True)
class Description:
    """Facts about a checkpoint; None and empty where the file does not state them. Keys of `to_json` stay as they are.

    `parameters` counts aliased tensors once. Patch sizes in voxels and `spacing` in mm, in the network's order of axes.
    `weights`: "student" or "teacher", of a pre-training that has both; `teacher`: whether the file holds that one as well.
    `stems`: their ids, where there is one for every data set.
    `problem` is why the file cannot be fine-tuned from, None when it can. `uses` are pairs of a purpose and a command.
    """

    path: str
    size_bytes: int
    sha256: str
    format: str
    repo_id: str | None = None
    revision: str | None = None
    trainer: str | None = None
    method: str | None = None
    weights: str | None = None
    teacher: bool = False
    stems: list[str] = field(default_factory=list)
    backbone: str | None = None
    network: str | None = None
    network_source: str | None = None
    architecture: dict[str, Any] | None = None
    parameters: dict[str, int] = field(default_factory=dict)
    tensors: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    non_finite_tensors: list[str] = field(default_factory=list)
    input_channels: int | None = None
    channel_names: list[str] = field(default_factory=list)
    patch_size: list[int] | None = None
    recommended_patch_size: list[int] | None = None
    spacing: list[float] | None = None
    resampled: bool | None = None
    normalization: list[str] = field(default_factory=list)
    transpose_forward: list[int] | None = None
    image_reader: str | None = None
    token_order: str | None = None
    dataset: str | None = None
    further_datasets: list[str] = field(default_factory=list)
    num_images: int | None = None
    epochs_done: int | None = None
    epochs_planned: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    licence: str | None = None
    citations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problem: str | None = None
    uses: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data for json.dump, uses as [{"purpose", "command"}]."""
        return {**asdict(self), "uses": [{"purpose": p, "command": c} for p, c in self.uses]}

    def table(self) -> str:
        """Everything as text for people; what is unknown says so."""
        return _table(self)


def _table(d: Description) -> str:
    """Aligned rows, then notes, then what to type next."""
    rows = [
        ("file", f"{d.path} ({_size(d.size_bytes)})"),
        ("SHA-256", d.sha256),
        ("origin", _join(f"{d.repo_id}, commit {d.revision}" if d.repo_id else None, otherwise="a local file")),
        ("format", d.format),
        ("trainer", _join(d.trainer)),
        ("method", _join(d.method)),
        *([("weights", d.weights + (", its teacher lies beside them" if d.teacher else ""))] if d.weights else []),
        *([("stems", f"{len(d.stems)}, to choose from with --stem: {listed(d.stems)}")] if d.stems else []),
        ("network", f"{d.network}, according to {d.network_source}" if d.network else "unknown"),
        ("parameters", f"{sum(d.parameters.values()):,} in {d.tensors} tensors ({_counts(d.dtypes)})"),
        *(("", f"{group}: {number:,}") for group, number in d.parameters.items()),
        ("NaN, infinite", f"{_join(d.non_finite_tensors[:3])}" if d.non_finite_tensors else "none"),
        ("input channels", _join(d.input_channels) + (f" ({', '.join(d.channel_names)})" if d.channel_names else "")),
        ("patch [voxels]", _join(_times(d.patch_size))),
        ("  recommended", _join(_times(d.recommended_patch_size))),
        ("spacing [mm]", _spacing(d)),
        ("normalisation", _join(list(dict.fromkeys(d.normalization)))),
        ("order of axes", _join(d.transpose_forward)),
        ("image reader", _join(d.image_reader)),
        *([("token order", d.token_order)] if d.token_order else []),
        ("data set", _join(d.dataset) + (f", {', '.join(d.further_datasets)}" if d.further_datasets else "")),
        ("  images", _join(d.num_images)),
        ("epochs", _epochs(d)),
        ("versions", _join([f"{name} {version}" for name, version in d.versions.items()])),
        ("licence", _join(d.licence)),
        ("cite", _join(d.citations[:1])),
        *(("", citation) for citation in d.citations[1:]),
    ]
    width = max(len(label) for label, _ in rows)
    lines = [f"{label.ljust(width)}  {cell(value)}" for label, value in rows]
    if d.notes:
        lines += ["", *(f"- {cell(note)}" for note in d.notes)]
    if d.problem is not None:
        lines += ["", f"It cannot be fine-tuned from: {printable(d.problem)}"]
    for purpose, command in d.uses:
        lines += ["", f"{purpose}:", f"  {cell(command)}"]
    return "\n".join(lines)


def _join(value: Any, otherwise: str = UNSTATED) -> str:
    if value is None or value == [] or value == "":
        return otherwise
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _times(values: list[int] | list[float] | None) -> str | None:
    return None if values is None else " x ".join(f"{v:g}" for v in values)


def _counts(dtypes: dict[str, int]) -> str:
    return ", ".join(dtypes) if len(dtypes) == 1 else _join([f"{n} {name}" for name, n in dtypes.items()], "no weights")


def _spacing(d: Description) -> str:
    if d.resampled is False:
        return "images were not resampled" + (f"; their median is {_times(d.spacing)}" if d.spacing else "")
    return _join(_times(d.spacing))


def _epochs(d: Description) -> str:
    if d.epochs_done is None:
        return UNSTATED
    return f"{d.epochs_done} done" + (f" of {d.epochs_planned}" if d.epochs_planned else "")


def _size(number: int) -> str:
    for unit in ("bytes", "KB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number = number / 1000  # type: ignore[assignment]
    return f"{number:.3g} GB"
