"""Does compiled code compute what the same code computes without: loss and all gradients, every pretext task on both networks?

    python benchmarks/gpu/compiled.py                                     # 19 pairs, six at a time; some minutes
    python benchmarks/gpu/compiled.py mae:primus_tiny voco:resenc_tiny    # these
    python benchmarks/gpu/compiled.py mae:resenc_tiny -device cpu --patch 32      # dry run

In float32 and without TF32, where rounding is small; in channels_last where a training would use it. A compiler that raises
nothing and is wrong is found nowhere else (torch 2.11 has been: benchmarks/LOG.md). Exits with 1 where something differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from steps import build

LOSS, GRADIENTS = 1e-3, 1e-2  # relative; of the largest gradient of all


def one(pair: str, device: str, patch: int) -> None:
    """Compare a pair in this process; prints one line, raises AssertionError where it differs."""
    import torch

    from nnunet_ssl.trainers.loop import stepping

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    stepping.autocast = lambda _: nullcontext()  # type: ignore[assignment]
    found: list[tuple[float, dict[str, Any]]] = []
    began = time.time()
    for setting in (f"{pair}:2:eager", f"{pair}:2"):
        trainer, make = build(setting, patch, device)

        def step(trainer: Any = trainer, batch: Any = make(0)) -> Any:  # noqa: B008  bound now, once per setting
            trainer.method.zero_grad(set_to_none=True)
            return stepping.run_batch(trainer, batch, 0, 0)

        loss = float(trainer.compiler.attempt(True, step, step).loss)
        found.append((loss, {n: p.grad for n, p in trainer.method.named_parameters() if p.grad is not None}))
        if setting.endswith(":2") and not trainer.compiler.on:
            raise AssertionError("it does not compile; the reason is above")
    (expected, plain), (loss, compiled) = found
    assert set(plain) == set(compiled), f"gradients of other weights: {sorted(set(plain) ^ set(compiled))}"
    largest = max(float(g.abs().max()) for g in plain.values())
    off = {n: float((compiled[n] - g).abs().max()) / largest for n, g in plain.items()}
    worst = max(off, key=off.__getitem__)
    text = f"{pair}: loss {expected:.6f} and {loss:.6f}, worst gradient {off[worst]:.1e} ({worst}), {time.time() - began:.0f} s"
    print(text, flush=True)
    assert abs(loss - expected) <= LOSS * max(abs(expected), 1e-6), "the loss differs"
    assert off[worst] <= GRADIENTS, "gradients differ"


def all_pairs() -> list[str]:
    """METHOD:BACKBONE of every pretext task on the tiny networks."""
    from nnunet_ssl.methods import get_method, method_names

    kinds = {"unet": "resenc_tiny", "primus": "primus_tiny"}
    return [f"{m}:{kinds[k]}" for m in method_names() for k in kinds if k in get_method(m).backbones]


def main() -> None:
    """Compare every pair in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", metavar="METHOD:BACKBONE")
    parser.add_argument("-device", default="cuda")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=6)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.device, args.patch)
        return

    def run(pair: str) -> bool:
        command = [
            sys.executable,
            os.path.abspath(__file__),
            "--one",
            pair,
            "-device",
            args.device,
            "--patch",
            str(args.patch),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = done.stdout.strip().splitlines()
        kept = [line for line in lines if line.startswith((pair, "WARNING"))]
        print(
            *kept, "" if done.returncode == 0 else f"{pair} FAILED: {lines[-1] if lines else ''}", sep="\n", flush=True
        )
        return done.returncode == 0

    with ThreadPoolExecutor(args.at_once) as pool:
        results = list(pool.map(run, args.pairs or all_pairs()))
    print(f"{sum(results)} of {len(results)} pairs compute the same compiled and not compiled")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
