"""Seconds per iteration and peak memory of pre-training steps, one fresh process per network.

    python benchmarks/step_time.py --patch 64 --batch 2 --repeats 5

Builds the networks of the presets, runs `repeats` steps after one warm-up on random images, and prints the median
seconds of preparation (masks, on the device), forward + backward, and optimiser, with the process' peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from nnunet_ssl.cli.pretrain import BACKBONES


def measure(method: str, backbone: str, patch: int, batch: int, repeats: int, device_name: str) -> dict[str, float]:
    """Median seconds per part, in this process."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    from nnunet_ssl.backbones import wrap_network
    from nnunet_ssl.methods import get_method
    from nnunet_ssl.planners import ssl_planner
    from nnunet_ssl.recipes import PRETRAINING, build_optimizer
    from nnunet_ssl.trainers.precision import autocast, autocast_dtype

    device = torch.device(device_name)
    cls = get_method(method)
    config = cls.Config()
    views = cls.views(config, (patch,) * 3)
    planner = getattr(ssl_planner, BACKBONES[backbone])
    architecture = planner.preset.architecture(views.network_size)
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        cls.output_channels(config, 1),
    )
    module = cls(wrap_network(network, views.network_size), config).to(device)
    recipe = PRETRAINING[module.backbone.kind]
    optimizer = build_optimizer(module.parameters(), recipe)
    shape = (batch, *((views.regions,) if views.regions > 1 else ()), 1, *views.region_size)
    data = {
        "image": torch.randn(shape, device=device),
        "excluded": torch.zeros(shape, dtype=torch.bool, device=device),
    }

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    parts: dict[str, list[float]] = {"prepare": [], "forward_backward": [], "optimizer": []}
    for step in range(repeats + 1):
        marks = [now()]
        with torch.no_grad():
            inputs = module.prepare(data, torch.Generator(device).manual_seed(step))
        marks.append(now())
        with autocast(device):
            loss = module(inputs).loss
        loss.backward()
        marks.append(now())
        torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        marks.append(now())
        if step:
            for name, start, end in zip(parts, marks, marks[1:], strict=False):
                parts[name].append(end - start)
    result = {name: statistics.median(values) for name, values in parts.items()}
    result["total"] = statistics.median(map(sum, zip(*parts.values(), strict=True)))
    result["parameters"] = sum(p.numel() for p in module.parameters())
    result["host_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result["device_gib"] = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    result["bits"] = (autocast_dtype(device) or torch.float32).itemsize * 8
    return result


def main() -> None:
    """Measure every network in a process of its own, so that peaks of memory do not mix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="mae")
    parser.add_argument("--backbones", nargs="+", default=sorted(BACKBONES), choices=sorted(BACKBONES))
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.method, args.one, args.patch, args.batch, args.repeats, args.device)))
        return
    print(f"{args.method}, patch {args.patch}^3, batch {args.batch}, median of {args.repeats} steps on {args.device}\n")
    print("| backbone | parameters | s/iteration | prepare | forward + backward | optimiser | peak memory | bits |")
    print("|---|---|---|---|---|---|---|---|")
    for backbone in args.backbones:
        done = subprocess.run(
            [sys.executable, *sys.argv, "--one", backbone], capture_output=True, text=True, check=True
        )
        r = json.loads(done.stdout.strip().splitlines()[-1])
        memory = r["device_gib"] or r["host_gib"]
        print(
            f"| {backbone} | {r['parameters'] / 1e6:.1f} M | {r['total']:.3f} | {r['prepare']:.3f} | "
            f"{r['forward_backward']:.3f} | {r['optimizer']:.3f} | {memory:.2f} GiB | {r['bits']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
