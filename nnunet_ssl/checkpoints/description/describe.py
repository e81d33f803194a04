"""What a checkpoint file is: everything it says about itself, and what its weights show."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_ssl.checkpoints.adaptation.layout import Layout
from nnunet_ssl.checkpoints.adaptation.report import GROUPS
from nnunet_ssl.checkpoints.aliases import own_name
from nnunet_ssl.checkpoints.canonical import canonical_weights
from nnunet_ssl.checkpoints.description.conventions import Conventions, read_conventions
from nnunet_ssl.checkpoints.description.description import Description
from nnunet_ssl.checkpoints.description.file_format import name_format, naming_notes
from nnunet_ssl.checkpoints.export.portable import STUDENT, TEACHER, has_teacher
from nnunet_ssl.checkpoints.foreign_values import mapping, text, whole_number
from nnunet_ssl.checkpoints.hub.download import sha256_of
from nnunet_ssl.checkpoints.hub.resolve import Origin
from nnunet_ssl.checkpoints.networks.spec import NetworkSpec
from nnunet_ssl.checkpoints.networks.stated import network_of
from nnunet_ssl.checkpoints.read import network_weights
from nnunet_ssl.checkpoints.token_order import needs_conversion
from nnunet_ssl.errors import CheckpointError


def describe(
    checkpoint: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    origin: Origin | None = None,
    typed: str | None = None,
) -> Description:
    """Describe a checkpoint as `read_checkpoint` returns it, lying at `path`.

    `origin` is where `resolve_source` found it; `typed` is what the user called it, for the commands. Never raises for
    what is in the checkpoint: a file that cannot be used says why in `problem`.
    """
    path = Path(path)
    problem, notes, spec = None, list[str](), None
    weights: Mapping[str, Tensor] = {}
    info: Mapping[str, Any] = {}
    try:
        weights = network_weights(checkpoint)
        notes += naming_notes(checkpoint)
        weights, info = canonical_weights(checkpoint)
        notes += [note[0].upper() + note[1:] + "." for note in info["notes"]]
        spec = network_of(checkpoint, weights)
        notes += [note[0].upper() + note[1:] + "." for note in spec.notes]
    except CheckpointError as error:
        problem = str(error)
    own = {own_name(name): tensor for name, tensor in weights.items()}
    broken = [name for name, tensor in own.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if broken and problem is None:
        problem = f"{len(broken)} tensors hold NaN or infinite values, e.g. {broken[0]}: that training had diverged."
    try:
        conventions = read_conventions(checkpoint)
    except CheckpointError as error:
        conventions, problem = Conventions(), problem or str(error)
    ssl = mapping(checkpoint.get("ssl"))
    backbone = info.get("backbone")
    return Description(
        path=str(path),
        size_bytes=path.stat().st_size,
        sha256=origin.sha256 if origin else sha256_of(path),
        format=name_format(checkpoint) + (", in a .safetensors file" if path.suffix == ".safetensors" else ""),
        repo_id=origin.repo_id if origin else None,
        revision=origin.revision if origin else None,
        trainer=text(checkpoint.get("trainer_name")),
        method=info.get("method"),
        weights=_weights(checkpoint, ssl),
        teacher=has_teacher(checkpoint),
        stems=list(info.get("stems", ()))[:1000],
        backbone=backbone,
        network=None if spec is None else str(spec),
        network_source=None if spec is None else spec.source,
        architecture=None if spec is None else spec.architecture(conventions.patch_size or spec.stride),
        parameters=count_parameters(own, spec),
        tensors=len(own),
        dtypes=dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in own.values())),
        non_finite_tensors=broken[:20],
        input_channels=info.get("num_input_channels"),
        channel_names=list(conventions.channel_names),
        patch_size=info.get("patch_size"),
        recommended_patch_size=_list(conventions.recommended_patch_size),
        spacing=_list(conventions.spacing),
        resampled=conventions.resampled,
        normalization=list(conventions.normalization),
        transpose_forward=_list(conventions.transpose_forward),
        image_reader=conventions.reader,
        token_order=_token_order(checkpoint) if backbone == "primus" else None,
        dataset=conventions.dataset,
        further_datasets=[str(name)[:200] for name in _sequence(ssl.get("datasets"))][1:],
        num_images=conventions.num_images,
        epochs_done=whole_number(checkpoint.get("current_epoch"), 0, 10**9),
        epochs_planned=whole_number(mapping(ssl.get("recipe")).get("num_epochs"), 0, 10**9),
        versions={str(k)[:80]: str(v)[:80] for k, v in mapping(ssl.get("versions")).items()},
        licence=text(ssl.get("licence")) or (origin.licence if origin else None),
        citations=_citations(checkpoint, ssl, origin),
        notes=notes,
        problem=problem,
        uses=_uses(checkpoint, path, conventions, typed or str(path), problem is None),
    )


def _weights(checkpoint: Mapping[str, Any], ssl: Mapping[str, Any]) -> str | None:
    return STUDENT if has_teacher(checkpoint) else TEACHER if ssl.get("weights") == TEACHER else None


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are, also as the network's: some of float64 are infinite there."""
    return bool(torch.isfinite(tensor.float() if tensor.dtype == torch.float64 else tensor).all())


def count_parameters(weights: Mapping[str, Tensor], spec: NetworkSpec | None) -> dict[str, int]:
    """Values per part of the network; all of them under "unknown" where the network is not known."""
    if spec is None:
        return {"unknown": sum(tensor.numel() for tensor in weights.values())} if weights else {}
    layout = Layout(spec.build_empty(1, 2, spec.stride))
    counts = dict.fromkeys(GROUPS, 0)
    for name, tensor in weights.items():
        counts[layout.group_of(name)] += tensor.numel()
    return {group: number for group, number in counts.items() if number}


def _uses(
    checkpoint: Mapping[str, Any], path: Path, conventions: Conventions, typed: str, usable: bool
) -> list[tuple[str, str]]:
    name, uses = shlex.quote(typed), list[tuple[str, str]]()
    if not usable:
        return uses
    if not conventions.segments:
        uses.append(("Fine-tune it", f"nnUNetv2_finetune DATASET -pretrained_weights {name}"))
    elif (path.parent.parent / "plans.json").is_file() and path.parent.name.startswith("fold_"):
        model, fold = shlex.quote(str(path.parent.parent)), shlex.quote(path.parent.name.removeprefix("fold_"))
        file = shlex.quote(path.name)
        what = f"nnUNetv2_predict_from_modelfolder -i INPUT -o OUTPUT -m {model} -f {fold} -chk {file}"
        uses.append(("Predict with it", what))
        uses.append(("Start from it on other data", f"nnUNetv2_finetune DATASET -pretrained_weights {name}"))
    else:
        uses.append(("Start from it on other data", f"nnUNetv2_finetune DATASET -pretrained_weights {name}"))
    uses.append(("Give it to others", f"nnUNetv2_pretrain_export {name} -o FOLDER"))
    if has_teacher(checkpoint):
        uses.append(("Take its teacher instead", f"nnUNetv2_pretrain_export {name} -o FOLDER --weights teacher"))
    return uses


def _token_order(checkpoint: Mapping[str, Any]) -> str:
    if needs_conversion(checkpoint):
        return "swapped (A1, A0, A2), nnssl's; converted to natural order on loading"
    stated = mapping(checkpoint.get("ssl")).get("token_order") == "natural"
    return "natural (A0, A1, A2)" + ("" if stated else ", assumed")


def _citations(checkpoint: Mapping[str, Any], ssl: Mapping[str, Any], origin: Origin | None) -> list[str]:
    found: list[str] = []
    for entry in [*_sequence(checkpoint.get("citations")), *_sequence(ssl.get("citations"))]:
        if isinstance(entry, Mapping):  # nnssl: {"type", "name", "apa_citations" or "bibtex_citations": [...]}
            found += [str(c) for key in ("apa_citations", "bibtex_citations") for c in _sequence(entry.get(key))]
        elif isinstance(entry, str):
            found.append(entry)
    if not found and origin is not None and origin.citation:
        found.append(origin.citation)
    return list(dict.fromkeys(text[:2000] for text in found))


def _sequence(value: Any) -> list[Any]:
    return list(value)[:100] if isinstance(value, (list, tuple)) else []


def _list(values: Any) -> list[Any] | None:
    return None if values is None else list(values)
