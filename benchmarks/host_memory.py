"""Host memory of a training process and its reading workers, a fresh process per method and network; nothing is timed.

    python benchmarks/host_memory.py
    python benchmarks/host_memory.py --pairs mae:primus_m volume_fusion:resenc_l --workers 8 -device cuda

Starts the real trainer on artificial images of 1.25 regions per axis with `--workers` reading processes, lets them fill
their queues, takes twice as many batches as were ready, and lets them fill the queues again. Twice a second another process
adds up; peaks count:

main       what the training process holds for itself (PSS: pages that several processes share are divided among them),
           without the network's parameters, which lie on the GPU in a real run
workers    the same for all reading processes, of training and validation
queues     batches that are ready or being made: files in shared memory, whoever has them open, each once
total      the highest sum of the three at one time
checkpoint what is copied from a GPU to the host while a checkpoint is written, with the optimiser's state

With `-device cuda` pinned copies take the place of batches in shared memory, and are added to `main`.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nnunet_ssl.cli.pretrain_flags import BACKBONES

GIB = 1 << 30
PAIRS = ("mae:primus_m", "mae:resenc_l", "voco:resenc_l", "simclr:resenc_l", "volume_fusion:resenc_l")
INTERVAL = 0.5  # s


def train(method: str, backbone: str, patch: int, batch: int, workers: int, device: str) -> dict[str, float]:
    """Run the loaders of a training in this process; bytes that the observer cannot see from outside."""
    import torch
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.paths import nnUNet_preprocessed

    from nnunet_ssl.checkpoints.write import bytes_needed
    from nnunet_ssl.methods import get_method
    from nnunet_ssl.planners.ssl_planner import CONFIGURATION
    from nnunet_ssl.planners.synthetic import synthetic_dataset
    from nnunet_ssl.trainers.data import loading
    from nnunet_ssl.trainers.data.packing import tensors_of
    from nnunet_ssl.trainers.launch import Run
    from nnunet_ssl.trainers.loop.state import pack
    from nnunet_ssl.trainers.profiling.measuring import next_batch, started

    cls: Any = get_method(method)
    loading.get_allowed_n_proc_DA = lambda: workers  # nnU-Net allows itself no more than there are cores
    with tempfile.TemporaryDirectory() as folder:
        views = lambda size: cls.views(cls.Config(), size).region_size  # noqa: E731
        with synthetic_dataset(folder, BACKBONES[backbone], [patch] * 3, views, cases=4) as plans:
            plans["configurations"][CONFIGURATION]["ssl"] |= {"batch_size": batch}
            description = load_json(os.path.join(str(nnUNet_preprocessed), plans["dataset_name"], "dataset.json"))
            run = Run(plans, CONFIGURATION, "all", description, method, device)
            taken = 2 * 2 * workers
            with started(run, taken + 3 * workers) as trainer:
                wait_until_idle()
                for _ in range(taken):
                    held = next_batch(trainer)  # as in a training, the last one stays while the next one arrives
                next(trainer.dataloader_val)  # type: ignore[call-overload]
                wait_until_idle()
                size = sum(tensor.nbytes for tensor in tensors_of(held))
                parameters = sum(p.nbytes for p in trainer.method.parameters())
                pinned = torch.cuda.host_memory_stats()["allocated_bytes.peak"] if device == "cuda" else 0
                on_host = 0 if device == "cuda" else parameters
                print("done", file=sys.__stdout__, flush=True)  # from here on the observer looks away
                sys.stdin.readline()
                for parameter in trainer.method.parameters():
                    parameter.grad = torch.zeros_like(parameter)
                trainer.optimizer.step()
                return {
                    "batch": size, "parameters": on_host, "pinned": pinned, "checkpoint": bytes_needed(pack(trainer))
                }  # fmt: skip


def wait_until_idle() -> None:
    """Until no reading process has computed anything for four seconds."""
    from multiprocessing import active_children

    def ticks() -> list[str]:
        return [
            Path(f"/proc/{c.pid}/stat").read_text().rpartition(")")[2].split(" ", 14)[12:14] for c in active_children()
        ]

    before, since = ticks(), time.monotonic()
    while time.monotonic() - since < 4:
        time.sleep(0.2)
        now = ticks()
        if now != before:
            before, since = now, time.monotonic()


def observe(method: str, backbone: str, args: argparse.Namespace) -> dict[str, Any]:
    """Peaks of a training in a process of its own."""
    from nnunet_ssl.trainers.device.memory import held_by, shared_by

    command = [sys.executable, __file__, "--one", method, backbone, "-device", args.device]
    command += ["--patch", str(args.patch), "--batch", str(args.batch), "--workers", str(args.workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdin is not None
    assert child.stdout is not None
    peaks = dict.fromkeys(("main", "workers", "queues", "total"), 0)
    while not select.select([child.stdout], [], [], INTERVAL)[0]:  # until it has said that it is done, or has ended
        family = children_of(child.pid)
        now = {
            "main": held_by([child.pid]) or 0,
            "workers": held_by(family) or 0,
            "queues": sum(shared_by([child.pid, *family]).values()),
        }
        now["total"] = sum(now.values())
        peaks = {name: max(peak, now[name]) for name, peak in peaks.items()}
    out, _ = child.communicate("\n")
    if child.returncode:
        raise SystemExit(f"{method} on {backbone} ended with exit code {child.returncode}")
    own = json.loads(out.strip().splitlines()[-1])
    for name in ("main", "total"):
        peaks[name] += own["pinned"] - own["parameters"]
    return {**peaks, **own}


def children_of(parent: int) -> list[int]:
    """Processes that a process has started."""
    try:
        tasks = Path(f"/proc/{parent}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    except OSError:
        return []  # it has ended


def main() -> None:
    """One row per pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, metavar="METHOD:BACKBONE")
    parser.add_argument("--patch", type=int, default=160, help="voxels per axis (default: 160)")
    parser.add_argument("--batch", type=int, default=8, help="images per step (default: 8)")
    parser.add_argument("--workers", type=int, default=8, help="reading processes of the training (default: 8)")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(train(*args.one, args.patch, args.batch, args.workers, args.device)))
        return
    print(f"Patch {args.patch}^3, batch {args.batch}, {args.workers} workers, {args.device}; peaks in GiB\n")
    columns = ("batch", "main", "workers", "queues", "total", "checkpoint")
    print(f"| method | network | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for pair in args.pairs:
        method, _, backbone = pair.partition(":")
        peaks = observe(method, backbone, args)
        print(f"| {method} | {backbone} | {' | '.join(f'{peaks[c] / GIB:.2f}' for c in columns)} |", flush=True)


if __name__ == "__main__":
    main()
