"""nnU-Net's -pretrained_weights for checkpoints that do not fit the network as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from torch import Tensor, nn
from torch import distributed as dist
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_ssl.checkpoints.adaptation.adapt import adapt_checkpoint
from nnunet_ssl.checkpoints.adaptation.fit import as_type
from nnunet_ssl.checkpoints.adaptation.options import TransferOptions
from nnunet_ssl.checkpoints.adaptation.report import TransferReport
from nnunet_ssl.checkpoints.hub.resolve import LocalCheckpoint, Origin, resolve_source
from nnunet_ssl.checkpoints.read import read_checkpoint
from nnunet_ssl.checkpoints.token_order import needs_conversion
from nnunet_ssl.errors import CheckpointError
from nnunet_ssl.integration.opening import Opened


def load(network: nn.Module, fname: str, verbose: bool, stock: Callable[[nn.Module, str, bool], None]) -> None:
    """Load pre-trained weights into a trainer's network, by nnU-Net's own function `stock` where that can.

    `fname` is whatever `resolve_source` takes: a file, a folder, a model on the Hugging Face Hub, a known model's name.
    Adapted are a network whose trainer set `nnunet_ssl_transfer` (TransferOptions), a pre-training module with a
    `bare_network`, and a file of ours or nnssl's that does not fit; the report is printed and kept on the network as
    `nnunet_ssl_transfer_report`. Other files keep nnU-Net's behaviour and errors. Raises CheckpointError, before
    anything of the file is run, for a file that is damaged or holds more than tensors and plain Python.
    """
    source = resolve_once_per_machine(fname)
    path = str(source.path)
    checkpoint = read_checkpoint(path)
    net = unwrap(network)
    first = not dist.is_initialized() or dist.get_rank() == 0
    if not wants_adaptation(net) and can_stock_load(net, checkpoint, path):
        if first and source.origin.repo_id is not None:
            print(f"Pre-trained weights: {source.origin}")
        state = net.state_dict()
        for name, value in checkpoint["network_weights"].items():
            if name in state and isinstance(value, Tensor) and value.shape == state[name].shape:
                as_type(value, state[name].dtype, name)  # nnU-Net would load infinite weights
        stock(network, Opened(path, checkpoint), verbose)
        return
    report = put_into(net, checkpoint, source.origin)
    if first:
        print(f"Pre-trained weights from {path}:\n{report.table()}")


def load_into(network: nn.Module, fname: str | os.PathLike[str], stem: str | None = None) -> TransferReport:
    """Adapt the weights of a checkpoint (whatever `resolve_source` takes) to a network, load them, return the report.

    stem: which one, of a checkpoint with a stem for every data set. Raises CheckpointError when it cannot be found or read,
    or too little of it fits.
    """
    source = resolve_once_per_machine(fname)
    return put_into(unwrap(network), read_checkpoint(source.path), source.origin, stem)


def resolve_once_per_machine(fname: str | os.PathLike[str]) -> LocalCheckpoint:
    """`resolve_source` by the first process of each machine; the others wait for it and use what it found.

    Every process of a group has to call this. An error of one reaches all of them, so that none waits for ever.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return resolve_source(fname)
    # a group of its own: a download may take longer than nnU-Net's processes wait for each other
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    rank = dist.get_rank()
    leads = int(os.environ.get("LOCAL_RANK", rank)) == 0  # nnU-Net's own processes are all of one machine
    outcome: LocalCheckpoint | Exception | None = None
    if leads:
        try:
            outcome = resolve_source(fname)
        except Exception as error:
            outcome = error if isinstance(error, CheckpointError) else CheckpointError(f"{fname}: {error!r}")
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, outcome, group=group)
    dist.destroy_process_group(group)
    for found in outcomes:
        if isinstance(found, Exception):
            raise CheckpointError(str(found)) from (found if leads else None)
    return next(found for found in outcomes[rank::-1] if found is not None)


def put_into(
    net: Any, checkpoint: Mapping[str, Any], origin: Origin | None = None, stem: str | None = None
) -> TransferReport:
    """Adapt a checkpoint to a network without wrappers and load it; raises CheckpointError when too little fits."""
    target = getattr(net, "bare_network", net)
    options = getattr(net, "nnunet_ssl_transfer", None)
    if options is None and target is not net:
        options = TransferOptions(transfer="encoder+decoder")  # pre-training goes on with all there is
    chosen = {} if options is None else dict(vars(options))
    if stem is not None:
        chosen["stem"] = stem
    state, report = adapt_checkpoint(checkpoint, target, **chosen)
    if origin is not None:
        report.source_info["origin"] = origin.to_json()
        if origin.repo_id is not None:
            report.add_note(f"from {origin}")
    report.raise_if_poor()
    target.load_state_dict(state)
    net.nnunet_ssl_transfer_report = report
    return report


def unwrap(network: nn.Module) -> Any:
    """The module inside the wrappers of DDP and torch.compile."""
    while isinstance(network, (DistributedDataParallel, OptimizedModule)):
        network = network.module if isinstance(network, DistributedDataParallel) else network._orig_mod
    return network


def wants_adaptation(net: Any) -> bool:
    """Whether a network says by itself that weights are to be adapted to it."""
    return hasattr(net, "bare_network") or getattr(net, "nnunet_ssl_transfer", None) is not None


def can_stock_load(net: nn.Module, checkpoint: Mapping[str, Any], fname: str) -> bool:
    """Whether a checkpoint is nnU-Net's own business: it fits as it is, or it is nnU-Net's and gets nnU-Net's error.

    Raises CheckpointError for a file of another program, which nnU-Net's function would fail on without saying why.
    """
    weights = checkpoint.get("network_weights")
    if "ssl" in checkpoint or "nnssl_adaptation_plan" in checkpoint:
        return isinstance(weights, Mapping) and fits(net, weights) and not needs_conversion(checkpoint)
    if not isinstance(weights, Mapping):
        held = ", ".join(map(str, list(checkpoint)[:6]))
        raise CheckpointError(
            f"{fname} was not written by nnU-Net: it has no network_weights, only {held}. "
            "nnU-Net's own trainers cannot load it. Use -tr SSLFinetuneTrainer, which adapts what fits."
        )
    return True


def fits(net: nn.Module, weights: Mapping[str, Any]) -> bool:
    """Whether nnU-Net's function accepts the weights: everything but segmentation layers is there, in equal shapes."""
    return all(
        getattr(weights.get(name), "shape", None) == tensor.shape
        for name, tensor in net.state_dict().items()
        if ".seg_layers." not in name
    )
