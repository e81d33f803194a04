"""The content of an exported checkpoint: what others need of it, in one form, and nothing that is private."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nnunet_ssl.checkpoints.adaptation_plan import build_adaptation_plan
from nnunet_ssl.checkpoints.canonical import attention_heads, canonical_weights, token_grid
from nnunet_ssl.checkpoints.export.private import DATASET_JSON, INIT_ARGS, Scrubber
from nnunet_ssl.checkpoints.networks.arguments import DROPPED
from nnunet_ssl.checkpoints.networks.stated import PRIMUS_DEFAULTS, PRIMUSX_NAMES, network_of, training_configuration
from nnunet_ssl.checkpoints.stems import IN_PROJECTION
from nnunet_ssl.checkpoints.token_order import TOKEN_ORDERS, to_swapped_order
from nnunet_ssl.errors import CheckpointError

DATASET = "dataset_json"
STUDENT, TEACHER = "student", "teacher"
PLACES = ("key_to_encoder", "key_to_stem", "key_to_lpe")


@dataclass(frozen=True)
class ExportOptions:
    """What of a checkpoint leaves the machine."""

    licence: str | None = None  # SPDX identifier, e.g. "CC-BY-4.0"; None keeps what the checkpoint says
    token_order: str = "natural"  # of Primus weights; "swapped" for programs that flatten (A1, A0, A2)
    keep_log: bool = False  # losses and times of every epoch
    keep_heads: bool = False  # the pretext task's own layers
    weights: str = STUDENT  # which of the networks of a pre-training with a teacher
    stem: str | None = None  # which one, of a checkpoint with a stem for every data set


@dataclass(frozen=True)
class Portable:
    """The checkpoint to write, and what was left out of it, one place per entry."""

    checkpoint: dict[str, Any]
    removed: list[str] = field(default_factory=list)


def portable(checkpoint: Mapping[str, Any], options: ExportOptions | None = None) -> Portable:
    """The checkpoint as it can be given away: weights, their description, no optimiser, no paths, no case names.

    The network is the trained one, or its teacher: one file never holds both. Weights get the bare names of nnU-Net's
    networks, equal values under every alias, and the token order asked for. All else is what JSON can hold, so that every
    format carries the same. Raises CheckpointError as `canonical_weights` does and for a teacher that is not there, ValueError
    for an unknown token order.
    """
    options = options or ExportOptions()
    if options.token_order not in TOKEN_ORDERS:
        raise ValueError(f"The token order is one of {', '.join(TOKEN_ORDERS)}, found {options.token_order!r}.")
    if options.weights == TEACHER:
        checkpoint = taught_by(checkpoint)
    weights, info = canonical_weights(checkpoint, stem=options.stem)
    scrub = Scrubber()
    if info["stems"]:
        scrub.removed.append(f"stems other than {info['stem']} ({len(info['stems'])} in all)")
    ssl = _describe(checkpoint, info, options, scrub)
    if info["backbone"] == "primus":
        ssl["token_order"] = options.token_order
        if options.token_order == "swapped":
            weights = _swapped(checkpoint, weights, info)
    content: dict[str, Any] = {
        "network_weights": weights,
        "ssl": ssl,
        "trainer_name": str(checkpoint.get("trainer_name", "")) or None,
        "init_args": _init_args(checkpoint.get("init_args"), scrub),
        "citations": _citations(checkpoint, ssl, scrub),
    }
    plan = adaptation_plan_of(checkpoint, weights, info)
    if plan is not None:
        content["nnssl_adaptation_plan"] = scrub(plan, "nnssl_adaptation_plan")
    if isinstance(checkpoint.get("current_epoch"), int):
        content["current_epoch"] = checkpoint["current_epoch"]
    if options.keep_log and isinstance(checkpoint.get("logging"), Mapping):
        content["logging"] = scrub(checkpoint["logging"], "logging")
    scrub.removed += [str(key) for key in checkpoint if key not in content]
    return Portable(content, scrub.removed)


def has_teacher(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds a teacher's network beside the trained one."""
    ssl = checkpoint.get("ssl")
    return isinstance(ssl, Mapping) and isinstance(ssl.get(TEACHER), Mapping)


def taught_by(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint with the teacher's network in the place of the student's; raises CheckpointError where there is none."""
    if not has_teacher(checkpoint):
        ssl = checkpoint.get("ssl")
        method = ssl.get("method") if isinstance(ssl, Mapping) else None
        raise CheckpointError(
            f"This checkpoint{f' of {method}' if method else ''} holds no teacher. Runs of self_distillation have one, their "
            "exports hold one network alone. Leave --weights teacher out, or name the checkpoint of the run itself."
        )
    ssl = {**checkpoint["ssl"], "weights": TEACHER}
    return {**checkpoint, "network_weights": ssl.pop(TEACHER), "ssl": ssl}


def adaptation_plan_of(
    checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor], info: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The adaptation plan of a checkpoint in the form other programs read; None where it is unknown.

    Checkpoints of nnU-Net have none: it is made from the plans in them. Keys name the places of the bare network. The one
    pre-training configuration is called after its spacing style, as nnssl does: SSL3D_classification looks for
    "onemmiso".
    """
    plan = checkpoint.get("nnssl_adaptation_plan")
    if not isinstance(plan, Mapping) or not plan:
        plan = _plan_from_plans(checkpoint, weights, info)
    if plan is None:
        return None
    plan = dict(plan)
    prefix = _wrapper(str(plan.get("key_to_encoder", "")))
    for key in PLACES:
        if isinstance(plan.get(key), str):
            plan[key] = plan[key].removeprefix(prefix)
    plan["keys_to_in_proj"] = [str(key).removeprefix(prefix) for key in plan.get("keys_to_in_proj") or ()]
    if info["stems"]:  # of which one is left, under the usual names
        plan["key_to_stem"], plan["keys_to_in_proj"] = "encoder.stem", list(IN_PROJECTION)
    pretraining = dict(plan.get("pretrain_plan") or {})
    pretraining["configurations"] = {
        settings.get("spacing_style") or name: settings
        for name, settings in (pretraining.get("configurations") or {}).items()
    }
    plan["pretrain_plan"] = pretraining
    plan["architecture_plans"] = _architecture(dict(plan.get("architecture_plans") or {}), info)
    recommended = plan.get("recommended_downstream_patchsize")
    if plan.get("key_to_lpe") is None and recommended is not None and info["patch_size"] != list(recommended):
        # No weight of a U-Net depends on it, but TaWald/nnUNet crashes where the two differ (VoCo's and SimCLR's crops).
        plan.setdefault("pretrain_patch_size", recommended)
    return plan


def _architecture(architecture: dict[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """The network of an adaptation plan for all its readers; presets have no arguments, readers know theirs.

    A Primus that is no preset names depth and heads as nnU-Net's development branch reads them, and what GloViTa and
    nnDetection ask for besides; what is the pre-training's own has no place in it.
    """
    kwargs = architecture.get("arch_kwargs")
    if not isinstance(kwargs, Mapping) or architecture.get("arch_class_name") not in ("Primus", "PrimusX"):
        return architecture
    theirs = {ours: name for name, ours in PRIMUSX_NAMES.items()}
    named = {theirs.get(key, key): value for key, value in kwargs.items() if key not in DROPPED}
    asked = {"input_shape": info["patch_size"], **PRIMUS_DEFAULTS}
    missing = {key: value for key, value in asked.items() if key not in named and value is not None}
    return {**architecture, "arch_kwargs": {**named, **missing}}


def _plan_from_plans(
    checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor], info: Mapping[str, Any]
) -> dict[str, Any] | None:
    arguments = checkpoint.get("init_args")
    if not isinstance(arguments, Mapping) or "architecture" not in training_configuration(checkpoint):
        return None
    channels, patch_size = info["num_input_channels"], info["patch_size"]
    network = network_of(checkpoint, weights).build_empty(channels, 2, patch_size)
    return build_adaptation_plan(network, arguments["plans"], arguments["configuration"], channels, patch_size)


def _wrapper(key_to_encoder: str) -> str:
    """What stands before the bare network's own name of its encoder, e.g. "encoder." in "encoder.eva"."""
    own = next((name for name in ("eva", "encoder.stages") if f".{key_to_encoder}".endswith(f".{name}")), "")
    return key_to_encoder.removesuffix(own) if own else ""


def _describe(
    checkpoint: Mapping[str, Any], info: Mapping[str, Any], options: ExportOptions, scrub: Scrubber
) -> dict[str, Any]:
    """The `ssl` block; a checkpoint of another program gets one with what is known of it."""
    own = checkpoint.get("ssl")
    known = dict(own) if isinstance(own, Mapping) else _foreign(info)
    if not options.keep_heads and known.pop("heads", None):
        scrub.removed.append("ssl.heads")
    if known.pop(TEACHER, None) is not None:
        scrub.removed.append(f"ssl.{TEACHER}")
    ssl: dict[str, Any] = scrub(known, "ssl")
    if options.licence is not None:
        ssl["licence"] = options.licence
    return ssl


def _init_args(arguments: Any, scrub: Scrubber) -> dict[str, Any]:
    """What the trainer was given; of dataset.json, which names every case, only what describes the images."""
    given = dict(arguments) if isinstance(arguments, Mapping) else {}
    dataset_json = scrub.keep(given.pop(DATASET, None), DATASET_JSON, f"init_args.{DATASET}")
    kept = scrub.keep(given, INIT_ARGS, "init_args")
    return {**kept, DATASET: dataset_json} if dataset_json else kept


def _foreign(info: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("method", "backbone", "num_input_channels", "patch_size")
    return {key: info[key] for key in kept if info[key] is not None}


def _citations(checkpoint: Mapping[str, Any], ssl: Mapping[str, Any], scrub: Scrubber) -> list[Any]:
    """The list nnU-Net's development branch prints before fine-tuning."""
    if isinstance(checkpoint.get("citations"), list) and checkpoint["citations"]:
        return scrub(checkpoint["citations"], "citations")
    papers = ssl.get("citations") or []
    return [{"type": "Pretraining method", "name": ssl.get("method"), "apa_citations": papers}] if papers else []


def _swapped(
    checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor], info: Mapping[str, Any]
) -> dict[str, Tensor]:
    grid = token_grid(weights, info["patch_size"])
    if grid[0] != grid[1]:
        raise CheckpointError(
            f"The tokens of this Primus form a grid of {grid}, and programs that flatten its first two axes the other "
            "way round turn the rotary embedding only right where these are equal. Export it in natural order."
        )
    return to_swapped_order(weights, grid, attention_heads(checkpoint, weights["eva.norm.weight"].shape[0], None))
