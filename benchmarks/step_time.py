"""Seconds per iteration and peak memory of pre-training steps, one fresh process per method and network.

    python benchmarks/step_time.py --patch 64 --batch 2
    python benchmarks/step_time.py --methods all --backbones resenc_tiny primus_tiny --patch 40 56 40 --batch 4

Builds the networks of the presets, runs `repeats` steps after one warm-up on random images, and prints the median
seconds of the views (masks, crops, corruptions: `Method.prepare`, on the device) with their share of the step, of
forward + backward, and of the optimiser, with the process' peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from nnunet_ssl.cli.pretrain_flags import BACKBONES


def measure(
    method: str, backbone: str, patch: tuple[int, ...], batch: int, repeats: int, device_name: str
) -> dict[str, float]:
    """Median seconds per part, in this process."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    from nnunet_ssl.backbones import wrap_network
    from nnunet_ssl.methods import get_method
    from nnunet_ssl.planners import ssl_planner
    from nnunet_ssl.recipes import build_optimizer, pretraining
    from nnunet_ssl.trainers.device.precision import autocast, autocast_dtype

    device = torch.device(device_name)
    cls = get_method(method)
    config = cls.Config()
    views = cls.views(config, patch)
    planner = getattr(ssl_planner, BACKBONES[backbone])
    architecture = planner.preset.architecture(views.network_size)
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        cls.output_channels(config, 1),
    )
    module = cls(wrap_network(network, views.network_size, cls.crop_setting), config).to(device)
    recipe = pretraining(module.name)[module.backbone.kind]
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
        torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.max_norm)
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


def pairs(methods: list[str], backbones: list[str]) -> list[tuple[str, str]]:
    """(method, backbone) for all that go together; `methods` may be ["all"]."""
    from nnunet_ssl.methods import get_method, method_names

    chosen = method_names() if methods == ["all"] else methods
    kinds = {name: "primus" if "primus" in name else "unet" for name in BACKBONES}
    return [(m, b) for m in chosen for b in backbones if kinds[b] in get_method(m).backbones]


def main() -> None:
    """Measure every pair in a process of its own, so that peaks of memory do not mix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["mae"], metavar="METHOD", help="names, or all (default: mae)")
    parser.add_argument("--backbones", nargs="+", default=sorted(BACKBONES), choices=sorted(BACKBONES))
    parser.add_argument("--patch", type=int, nargs="+", default=[64], help="voxels per axis, one number or three")
    parser.add_argument("--batch", type=int, default=2, help="images per step (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="steps of which the median is taken (default: 5)")
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if len(args.patch) not in (1, 3):
        parser.error(f"--patch wants 1 or 3 numbers, found {len(args.patch)}.")
    patch = tuple(args.patch * 3 if len(args.patch) == 1 else args.patch)
    if args.one:
        print(json.dumps(measure(*args.one, patch, args.batch, args.repeats, args.device)))
        return
    size = " x ".join(map(str, patch))
    print(f"Patch {size}, batch {args.batch}, median of {args.repeats} steps on {args.device}\n")
    print(
        "| method | backbone | parameters | s/iteration | views | share | forward + backward | optimiser | peak memory | bits |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for method, backbone in pairs(args.methods, args.backbones):
        command = [sys.executable, *sys.argv, "--one", method, backbone]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        r = json.loads(done.stdout.strip().splitlines()[-1])
        memory = r["device_gib"] or r["host_gib"]
        print(
            f"| {method} | {backbone} | {r['parameters'] / 1e6:.1f} M | {r['total']:.3f} | {r['prepare']:.4f} | "
            f"{r['prepare'] / r['total']:.1%} | {r['forward_backward']:.3f} | {r['optimizer']:.3f} | {memory:.2f} GiB | "
            f"{r['bits']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
