"""What layers written in another way are worth: a step with them, against the same step with torch's own.

    python benchmarks/layers.py --patch 64 --batch 2
    python benchmarks/layers.py --parts norms --backbones resenc_l --device cuda --patch 160

norms: instance norms whose output may be changed in place, in a U-Net. embedding, decoder, patches: Primus' patch embedding,
its patch decoder, or both, as matrix products, alone and in a step of the whole network. Forward and backward pass, not
compiled, in the device's best precision. Both ways take turns in one process; printed are the median of the seconds of each
(of a CPU's time, on a CPU), their ratio with its range, and the most bytes that tensors hold (on a GPU: that its allocator
gave out).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from nnunet_ssl.backbones.bfloat16_conv3d import avoid_bfloat16_conv3d_bug
from nnunet_ssl.backbones.blockwise import compute_by_product
from nnunet_ssl.backbones.norms import keep_layout
from nnunet_ssl.cli.pretrain_flags import BACKBONES
from nnunet_ssl.planners import ssl_planner
from nnunet_ssl.trainers.device.live_memory import LiveMemory
from nnunet_ssl.trainers.device.precision import autocast, autocast_dtype

PARTS: dict[str, Callable[[nn.Module], None]] = {
    "norms": keep_layout,
    "embedding": compute_by_product,
    "decoder": compute_by_product,
    "patches": compute_by_product,
}


def build(backbone: str, patch: tuple[int, ...]) -> nn.Module:
    """The preset's network for one channel."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    made = getattr(ssl_planner, BACKBONES[backbone]).preset.architecture(patch)
    names = ("network_class_name", "arch_kwargs", "_kw_requires_import")
    network = get_network_from_plans(*(made[n] for n in names), 1, 1)
    if hasattr(network, "decoder"):
        network.decoder.deep_supervision = False
    avoid_bfloat16_conv3d_bug(network)
    return network.train()


def step(module: nn.Module, image: torch.Tensor) -> None:
    """Forward and backward pass."""
    module.zero_grad(set_to_none=True)
    with autocast(image.device):
        output = module(image)
    output.float().square().mean().backward()


def seconds(module: nn.Module, image: torch.Tensor) -> float:
    """Of a step; those of all its threads on a CPU, which others may use as well."""
    cuda = image.device.type == "cuda"
    wait, now = (torch.cuda.synchronize, time.perf_counter) if cuda else (lambda: None, time.process_time)
    wait()
    began = now()
    step(module, image)
    wait()
    return now() - began


def peak(module: nn.Module, image: torch.Tensor) -> float:
    """GiB that tensors hold at most during a step, beyond weights and image."""
    module.zero_grad(set_to_none=True)
    if image.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(module, image)
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    memory = LiveMemory()
    with memory:
        memory.begin()
        before = memory.now
        step(module, image)
    return (memory.peak - before) / 2**30


def compare(part: str, backbone: str, patch: tuple[int, ...], batch: int, repeats: int, device: torch.device) -> None:
    """Print one line."""
    whole = build(backbone, patch).to(device)
    image = torch.randn(batch, 1, *patch, device=device)
    plain = whole
    if part in ("embedding", "decoder"):
        plain = whole.down_projection if part == "embedding" else whole.up_projection
        if part == "decoder":
            grid = [n // k for n, k in zip(patch, whole.down_projection.proj.kernel_size, strict=True)]
            image = torch.randn(batch, whole.down_projection.proj.out_channels, *grid, device=device)
        image.requires_grad_(part == "decoder")
    ours = copy.deepcopy(plain)
    PARTS[part](ours)
    pairs = [(seconds(plain, image), seconds(ours, image)) for _ in range(repeats + 1)][1:]
    medians = [statistics.median(times) for times in zip(*pairs, strict=True)]
    ratios = [one / other for one, other in pairs]
    peaks = [peak(module, image) for module in (plain, ours)]
    size = " x ".join(map(str, patch))
    print(
        f"| {part} | {backbone} | {size} | {batch} | {medians[0]:.4f} | {medians[1]:.4f} | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) | {peaks[0]:.2f} | {peaks[1]:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--backbones", nargs="+", default=["resenc_l", "primus_m"], choices=sorted(BACKBONES))
    parser.add_argument(
        "--patch", type=int, nargs="+", default=[64], help="voxels per axis, or one number for all three"
    )
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    patch = tuple(arguments.patch) * (3 if len(arguments.patch) == 1 else 1)
    device = torch.device(arguments.device)
    precision = autocast_dtype(device) or torch.float32
    print(f"{precision} on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| layers | network | patch | batch | torch's, s | ours, s | times as fast | GiB | GiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for part in arguments.parts:
        for backbone in arguments.backbones:
            if (part == "norms") == backbone.startswith("resenc"):
                compare(part, backbone, patch, arguments.batch, arguments.repeats, device)


if __name__ == "__main__":
    main()
