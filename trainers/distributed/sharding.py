"""Networks too big for one device: every process keeps a part of each weight, its gradient and its optimiser state.

torch's FSDP2 (`fully_shard`). A block is put together from all processes just before it computes, forwards and backwards,
and taken apart again afterwards; gradients arrive as means over the processes, in parts. Nothing else may notice: the
network still loads whole tensors, and `whole` gives back what a run in one process would have saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from nnunet_ssl.errors import MachineError
from nnunet_ssl.methods.base import Method
from nnunet_ssl.recipes import Recipe, build_optimizer
from nnunet_ssl.trainers.device.compiling import Compiler

Step = Callable[..., Any]


def require_sharding(processes: int) -> None:
    """Raise MachineError where this many processes of this torch cannot shard."""
    without = 'or --no-shard, which continues sharded runs too (nnUNetv2_train: "shard": false in the plans)'
    if not hasattr(fsdp, "fully_shard"):
        found = torch.__version__
        raise MachineError(f"--shard needs torch 2.6 or newer, this is {found}. Use pip install -U torch, {without}.")
    if processes < 2:
        raise MachineError(
            "--shard spreads a network over several processes, and this is one alone. Use --num-gpus N or torchrun "
            f"(nnUNetv2_train: -num_gpus N), {without}."
        )


def shard(method: Method, device: torch.device, compiler: Compiler) -> tuple[Method, Step, Step]:
    """Spread a method over all processes, in place; returns it with its `encode` and `compare` for calls of their own.

    The parts move to `device` block by block: at no moment does it hold the whole network. Each block is compiled for
    itself: what the processes exchange between them cannot be. Raises MachineError where sharding is not possible.
    """
    require_sharding(dist.get_world_size() if dist.is_initialized() else 1)
    # nnU-Net's stages end in views (of instance norms). The warning is for code that changes them in place: there is none.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    # The cache would hold half-precision copies of all weights through the forward pass.
    torch.set_autocast_cache_enabled(False)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks_of(method):
        compiler.compile_forward(block)
        fsdp.fully_shard(block, mesh=mesh)
    fsdp.fully_shard(method, mesh=mesh)  # what is in no block: stem, heads, output layers, embeddings
    for module in (method, *method.networks):
        module.register_load_state_dict_pre_hook(_take_local_shards)
    return method, _as_forward(method, "encode"), _as_forward(method, "compare")


def blocks_of(method: Method) -> list[nn.Module]:
    """The pieces of networks that are put together one at a time: transformer blocks, or the stages of a U-Net."""
    if method.backbone.kind == "primus":
        return [block for network in method.networks for block in network.eva.blocks]
    return [stage for network in method.networks for stage in (*network.encoder.stages, *network.decoder.stages)]


def _as_forward(method: Method, name: str) -> Step:
    """A method beside `forward` that may be called from outside. Under another name: `forward` itself must not see it."""
    alias = f"sharded_{name}"
    setattr(method, alias, getattr(method, name))
    fsdp.register_fsdp_forward_method(method, alias)
    return getattr(method, alias)


def build_sharded_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> Optimizer:
    """As `build_optimizer`, for sharded parameters; it loads the state of an optimiser over whole ones.

    torch has AdamW as one kernel for sharded parameters, but not SGD.
    """
    optimizer = build_optimizer(parameters, recipe, fused=recipe.optimizer == "adamw")
    optimizer.register_load_state_dict_pre_hook(_take_own_states)
    return optimizer


def local_shard(tensor: Tensor, like: Tensor) -> Tensor:
    """This process' part of a whole tensor, cut as `like` is; the tensor itself where nothing is cut."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor  # other shapes: the step counter of an optimiser, or what load_state_dict will complain about
    mesh, local = like.device_mesh, like.to_local()
    shards, rank = tensor.chunk(mesh.size()), mesh.get_local_rank()  # along the first axis, as FSDP2 does
    own = shards[rank] if rank < len(shards) else tensor[:0]  # the last processes may get nothing
    own = own.to(device=local.device, dtype=local.dtype, copy=True)  # not a view, which would keep the whole alive
    return DTensor.from_local(own, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def _take_local_shards(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    for name, like in module.state_dict(keep_vars=True).items():
        if prefix + name in state:
            state[prefix + name] = local_shard(state[prefix + name], like)


def _take_own_states(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    states, groups = dict(state["state"]), []
    for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        groups.append({**saved, "fused": own["fused"], "foreach": own["foreach"]})  # how it computes, not what
        for index, parameter in zip(saved["params"], own["params"], strict=True):
            values = states.get(index, {})
            states[index] = {k: local_shard(v, parameter) if isinstance(v, Tensor) else v for k, v in values.items()}
    return {"state": {k: v for k, v in states.items() if v}, "param_groups": groups}


def whole(states: dict[Any, Any], seen: dict[int, Tensor | None] | None = None) -> dict[Any, Any]:
    """Nested dictionaries with all parts put together, on the CPU of the first process; the others get None for each.

    Every process has to call this, with the same keys. A tensor that appears twice (`seen`) is put together once.
    """
    seen, result, first = {} if seen is None else seen, {}, dist.get_rank() == 0
    for key, value in states.items():
        if isinstance(value, DTensor):
            if id(value) not in seen:
                full = value.full_tensor().detach()
                seen[id(value)] = full.cpu() if first else None
            value = seen[id(value)]
        result[key] = whole(value, seen) if isinstance(value, dict) else value
    return result


def whole_optimizer(state: dict[str, Any]) -> dict[str, Any]:
    """`whole` for an optimiser's state, which then says that it is fused, as in a run without shards."""
    return whole({**state, "param_groups": [{**g, "fused": True, "foreach": None} for g in state["param_groups"]]})


def clip_gradients(network: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients so that their total L2 norm is at most `max_norm`; returns what it was.

    Of parts, one sum is exchanged for all.
    """
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    parts = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    if not parts:
        return nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    square = nn.utils.get_total_norm(parts).square()
    dist.all_reduce(square)
    torch._foreach_mul_(parts, (max_norm / (square.sqrt() + 1e-6)).clamp(max=1))
    return square.sqrt()
