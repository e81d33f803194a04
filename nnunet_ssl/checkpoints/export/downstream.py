"""How nnU-Net's development branch, TaWald/nnUNet and nnssl itself put an nnssl checkpoint into a network.

Written from the format's description, to check an exported file before it is given away: they strict-load what lies
under the encoder's and the stem's key into the submodules of that name, and know no other way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_ssl.checkpoints.adaptation.position_embedding import grid_of, resize_position_embedding
from nnunet_ssl.checkpoints.networks.stated import stated_network
from nnunet_ssl.errors import CheckpointError


def empty_network(plan: Mapping[str, Any], num_input_channels: int, patch_size: Sequence[int]) -> nn.Module:
    """The network an adaptation plan names or describes, on the "meta" device; raises CheckpointError for others."""
    spec = stated_network({"nnssl_adaptation_plan": plan})
    if spec is None:
        raise CheckpointError("The nnssl_adaptation_plan names no architecture.")
    return spec.build_empty(num_input_channels, 2, patch_size)


def load_like_downstream(
    checkpoint: Mapping[str, Any], network: Any, num_input_channels: int, patch_size: Sequence[int]
) -> None:
    """Load encoder, stem and position embedding of an nnssl checkpoint into a network that knows its own places.

    The stem of one channel is repeated for several, the position embedding interpolated in natural order where the patch
    size (voxels) differs from the pre-training's. Raises RuntimeError as a strict `load_state_dict` does, KeyError for
    what the adaptation plan lacks.
    """
    plan, weights = checkpoint["nnssl_adaptation_plan"], checkpoint["network_weights"]
    encoder = {k: v for k, v in weights.items() if k.startswith(plan["key_to_encoder"])}
    stem = {k: v for k, v in weights.items() if k.startswith(plan["key_to_stem"])}
    if num_input_channels > plan["pretrain_num_input_channels"]:
        first = stem[plan["keys_to_in_proj"][0] + ".weight"]
        repeated = first.repeat(1, num_input_channels, *[1] * (first.ndim - 2)) / num_input_channels
        stem.update({f"{key}.weight": repeated for key in plan["keys_to_in_proj"]})
    encoder, stem = _below(encoder, plan["key_to_encoder"]), _below(stem, plan["key_to_stem"])
    (pretraining,) = plan["pretrain_plan"]["configurations"].values()
    pretraining_patch = plan.get("pretrain_patch_size") or pretraining["patch_size"]
    if getattr(network, "key_to_lpe", None) is not None and list(pretraining_patch) != list(patch_size):
        token = stem["proj.weight"].shape[2:]
        grids = grid_of(pretraining_patch, token), grid_of(patch_size, token)
        encoder["pos_embed"] = resize_position_embedding(encoder["pos_embed"], *grids)  # type: ignore[arg-type]
    network.get_submodule(network.key_to_encoder).load_state_dict(encoder, assign=True)
    network.get_submodule(network.key_to_stem).load_state_dict(stem, assign=True)


def _below(weights: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name.replace(key, "").removeprefix("."): tensor for name, tensor in weights.items()}


def check_loads_downstream(checkpoint: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless programs that read the nnssl format can load a checkpoint, costing no memory."""
    plan = checkpoint.get("nnssl_adaptation_plan")
    if not isinstance(plan, Mapping):
        raise CheckpointError(
            "The checkpoint has no nnssl_adaptation_plan, without which the programs that read the nnssl format do not "
            "know its network. Checkpoints of nnUNetv2_pretrain and nnssl have one; use --format safetensors for others."
        )
    try:
        (pretraining,) = plan["pretrain_plan"]["configurations"].values()
        patch_size = plan.get("pretrain_patch_size") or pretraining["patch_size"]
        channels = int(plan["pretrain_num_input_channels"])
        load_like_downstream(checkpoint, empty_network(plan, channels, patch_size), channels, patch_size)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The checkpoint's nnssl_adaptation_plan is not one others can read ({type(error).__name__}: {error}). "
            "Use --format safetensors."
        ) from error
    except CheckpointError:
        raise
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights are not those of the network in their nnssl_adaptation_plan: {str(error)[:600]} "
            "Use --format safetensors."
        ) from error
