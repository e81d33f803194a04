"""What a checkpoint of any origin holds, in one form: canonical weights and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from nnunet_ssl.checkpoints.adaptation.position_embedding import cubic_grid, first_fitting, grid_of
from nnunet_ssl.checkpoints.aliases import resolve_aliases, without_wrapper
from nnunet_ssl.checkpoints.description.stated import channel_names, dimensions, text, whole_number
from nnunet_ssl.checkpoints.read import network_weights
from nnunet_ssl.checkpoints.stems import MEAN, choose_stem, stems_of
from nnunet_ssl.checkpoints.token_order import needs_conversion, states_token_order, to_natural_order
from nnunet_ssl.errors import CheckpointError

# part of an nnssl trainer's name -> our method; SimMIM and Spark before MAE, which SparkMAE contains as well
NNSSL_METHODS = {
    "SimMIM": "simmim",
    "Spark": "spark3d",
    "VoCo": "voco",
    "SimCLR": "simclr",
    "SwinUNETR": "swin_unetr",
    "VolumeFusion": "volume_fusion",
    "ModelGenesis": "models_genesis",
    "ModelsGenesis": "models_genesis",
    "nnFoundation": "mae",  # arXiv:2609.26924: both networks
    "MAE": "mae",
}
DEFAULT_TRANSFER = {"spark3d": "encoder+decoder"}  # its paper (arXiv:2410.23132) transfers the decoder as well
PRESET_HEADS = {
    "PrimusS": (396, 6),
    "PrimusB": (792, 12),
    "PrimusM": (864, 12),
    "PrimusL": (1056, 16),
    "PrimusX": (1056, 16),
}
HEAD_KEYS = ("eva_numheads", "encoder_eva_numheads")


def canonical_weights(
    checkpoint: Mapping[str, Any],
    *,
    num_heads: int | None = None,
    stem: str | None = None,
    target_channel_names: Sequence[str] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Canonical weights of a checkpoint, and info on it for `adapt`.

    Canonical: bare nnU-Net names, the values the network ran under every alias, tokens in natural order. The info holds
    patch_size, num_input_channels, channel_names, method, backbone, architecture, planner, transfer (the method's
    default), stems, the stem taken of them, and notes; None where the checkpoint does not say. `num_heads` helps where
    swapped tokens of an unknown Primus are converted. `stem` chooses one where there is one for every data set, see
    `choose_stem`. Raises CheckpointError when the checkpoint holds no weights, its token grid cannot be told, it has no such
    stem, or it describes itself in a way that makes no sense.
    """
    weights = resolve_aliases(without_wrapper(network_weights(checkpoint)))
    stems, taken, notes = stems_of(weights), None, []
    if stems:
        stated = text(_dict(checkpoint, "nnssl_adaptation_plan").get("key_to_stem"))
        chosen = choose_stem(weights, stated, stem, target_channel_names)
        weights, taken = chosen.weights, chosen.stem
        which = f"the mean of {len(stems)}" if taken == MEAN else f"{taken} of {len(stems)}"
        notes.append(f"stem: {which}, {chosen.why} (nnUNetv2_plan_finetune --stem chooses another)")
    elif stem is not None:
        raise CheckpointError(
            f"The checkpoint has one stem for all images, and not several to choose {stem} from. Leave out --stem, or "
            '"stem" in the finetune block of the plans.'
        )
    info = {**_describe(checkpoint, weights), "stems": stems, "stem": taken, "notes": notes}
    if info["backbone"] != "primus":
        return weights, info
    if needs_conversion(checkpoint):
        grid = token_grid(weights, info["patch_size"]) if "eva.pos_embed" in weights else (1, 1, 1)
        heads = attention_heads(checkpoint, _shape(weights, "eva.norm.weight", 1)[0], num_heads)
        weights = to_natural_order(weights, grid, heads)
        info["notes"].append("token order: nnssl's (A1, A0, A2) converted to natural order (A0, A1, A2)")
    elif not states_token_order(checkpoint):
        info["notes"].append("token order: not stated by the checkpoint, taken as natural (A0, A1, A2)")
    return weights, info


def _describe(checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    ssl, plan = _dict(checkpoint, "ssl"), _dict(checkpoint, "nnssl_adaptation_plan")
    init_args = _dict(checkpoint, "init_args")
    plans = _dict(init_args, "plans")
    configuration = _dict(_dict(plans, "configurations"), text(init_args.get("configuration")) or "")
    pretrained_as = next(iter(_dict(_dict(plan, "pretrain_plan"), "configurations").values()), None)
    patch_size = (
        dimensions(ssl, "patch_size")
        or dimensions(plan, "pretrain_patch_size")
        or dimensions(pretrained_as, "patch_size")
        or dimensions(configuration, "patch_size")
    )
    backbone = None
    if any(name.startswith("eva.blocks.") for name in weights):
        backbone = "primus"
    elif any(name.startswith("encoder.stages.") for name in weights):
        backbone = "unet"
    trainer = text(checkpoint.get("trainer_name")) or ""
    method = text(ssl.get("method")) or _nnssl_method(trainer)
    network_class = (text(_dict(configuration, "architecture").get("network_class_name")) or "").rpartition(".")[2]
    preset = text(_dict(plan, "architecture_plans").get("arch_class_name"))
    return {
        "patch_size": patch_size,
        "num_input_channels": whole_number(ssl, "num_input_channels")
        or whole_number(plan, "pretrain_num_input_channels")
        or _image_channels(weights),
        "channel_names": channel_names(checkpoint),
        "method": method or ("mae" if preset == "PrimusX" else None),  # nnssl has only its MAE in this size
        "backbone": backbone,
        "architecture": preset or network_class or None,
        "planner": text(plans.get("experiment_planner_used")),
        "transfer": DEFAULT_TRANSFER.get(str(method), "encoder"),
    }


def _dict(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def _nnssl_method(trainer: str) -> str | None:
    return next((method for part, method in NNSSL_METHODS.items() if part in trainer), None)


def _image_channels(weights: Mapping[str, Tensor]) -> int | None:
    first = (
        "down_projection.proj.weight",
        "encoder.stem.convs.0.conv.weight",
        "encoder.stages.0.0.convs.0.conv.weight",
    )
    stem = next((weights[name] for name in first if name in weights), None)
    return stem.shape[1] if stem is not None and stem.ndim > 1 else None


def _shape(weights: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    """Shape of a tensor that must be there with that many axes, none of them empty; raises CheckpointError."""
    shape = tuple(weights[name].shape) if name in weights else None
    if shape is None or len(shape) != ndim or 0 in shape:
        raise CheckpointError(
            f"The checkpoint holds a Primus, but its {name} {'is missing' if shape is None else f'has shape {shape}'}. "
            f"Expected a tensor with {ndim} axes. Is the file whole?"
        )
    return shape


def token_grid(weights: Mapping[str, Tensor], patch_size: list[int] | None) -> tuple[int, ...]:
    """Tokens per axis of a Primus' canonical weights, trained on patches of `patch_size` voxels; raises CheckpointError."""
    num_tokens = _shape(weights, "eva.pos_embed", 3)[1]
    token_size = _shape(weights, "down_projection.proj.weight", 5)[2:]
    grid = first_fitting(num_tokens, [grid_of(patch_size, token_size), cubic_grid(num_tokens, len(token_size))])
    if grid is None:
        raise CheckpointError(
            f"The checkpoint's {num_tokens} tokens of {token_size} voxels fit neither a cube nor its patch size "
            f"{patch_size}. Expected the patch size it was trained with in nnssl_adaptation_plan.pretrain_patch_size."
        )
    return grid


def attention_heads(checkpoint: Mapping[str, Any], width: int, from_target: int | None) -> int:
    """Attention heads: as the adaptation plan says, as the target network has, or with the preset's head width."""
    architecture = _dict(_dict(checkpoint, "nnssl_adaptation_plan"), "architecture_plans")
    kwargs = _dict(architecture, "arch_kwargs")
    stated = next((heads for key in HEAD_KEYS if (heads := whole_number(kwargs, key))), None)
    preset_width, preset_heads = PRESET_HEADS.get(text(architecture.get("arch_class_name")) or "", (0, 1))
    if preset_width == width:
        stated = preset_heads
    if stated or from_target:
        return int(stated or from_target or 0)
    by_width = next((heads for preset, heads in PRESET_HEADS.values() if preset == width), None)
    head_width = preset_width // preset_heads
    if by_width is None and (head_width == 0 or width % head_width):
        raise CheckpointError(
            f"The checkpoint does not say how many attention heads its Primus of width {width} has, and converting "
            "its token order needs that. Expected eva_numheads in nnssl_adaptation_plan.architecture_plans.arch_kwargs."
        )
    return by_width or width // head_width
