"""A description of a checkpoint as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnunet_ssl.checkpoints.stems import listed
from nnunet_ssl.quoting import cell, printable

if TYPE_CHECKING:
    from nnunet_ssl.checkpoints.description.describe import Description

UNSTATED = "not stated in the file"


def printed(d: Description) -> str:
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
