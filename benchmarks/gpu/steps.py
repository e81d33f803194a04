"""Milliseconds and memory of training steps at full size on a GPU, of many settings in one go.

    python benchmarks/gpu/steps.py mae:resenc_l:2 mae:resenc_l:8 mae:primus_m:2 mae:primus_m:8      # METHOD:BACKBONE:BATCH
    python benchmarks/gpu/steps.py mae:resenc_l:2 mae:resenc_l:2:eager mae:resenc_l:2:contiguous mae:resenc_l:2:pairs
    python benchmarks/gpu/steps.py mae:resenc_tiny:2 mae:primus_tiny:2 -device cpu --patch 32      # dry run

Compiling a full-size network takes a minute or two of one core. So every setting has a process of its own; all compile and
warm up side by side, as far as the card's memory allows, and are then timed one after the other, while nobody else computes:
the real step (views, forward, backward, clipping, optimiser) on batches that lie on the device, median of `--repeats`. After a
setting one may write, separated by colons: eager (not compiled), contiguous (no channels_last), recompute, pairs, fusion and
graphs (see nnunet_ssl/backbones/unmeasured.py), profile (the longest kernels as well).

--json FILE: all rows; what is new goes into nnunet_ssl/report/gpu_times.csv.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nnunet_ssl.backbones.unmeasured import KNOWN, VARIABLE

OPTIONS = ("eager", "contiguous", "profile", "recompute", *KNOWN)


def build(setting: str, edge: int, device_name: str) -> tuple[Any, Any]:
    """A stand-in for the trainer, as `stepping` asks of one, and a function that makes a batch from a seed."""
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    from nnunet_ssl.backbones.drop_path import drop_by_image
    from nnunet_ssl.backbones.recompute import recompute
    from nnunet_ssl.cli.pretrain_flags import BACKBONES
    from nnunet_ssl.methods import get_method
    from nnunet_ssl.planners import ssl_planner
    from nnunet_ssl.recipes import build_optimizer, pretraining
    from nnunet_ssl.trainers.device.compiling import Compiler
    from nnunet_ssl.trainers.loop.building import build_method

    name, backbone, number, *options = setting.split(":")
    unknown = set(options) - set(OPTIONS)
    if unknown:
        raise SystemExit(f"Unknown options {sorted(unknown)} of {setting}; there are {', '.join(OPTIONS)}.")
    cls, patch, device = get_method(name), (edge,) * 3, torch.device(device_name)
    config = cls.Config()
    views = cls.views(config, patch)
    preset = getattr(ssl_planner, BACKBONES[backbone]).preset
    plans = ConfigurationManager({"architecture": preset.architecture(views.network_size), "patch_size": patch})
    os.environ[VARIABLE] = ",".join(option for option in options if option in KNOWN)
    compiled, torch.backends.cudnn.benchmark = "eager" not in options, True
    torch.manual_seed(0)
    method = build_method(cls, config, plans, 1, views, channels_last=compiled and "contiguous" not in options)
    paths = drop_by_image(method)
    if "recompute" in options:
        recompute(method, method.recomputing)
    if device.type == "cuda" and compiled:
        compiler = Compiler.for_gpu(print, "recompute" in options, method.backbone.kind, "recompute" not in options)
    else:
        compiler = Compiler(compiled, print, options={} if device.type == "cuda" else {"cpp.threads": 1})
    method = method.to(device).train()
    encode = compiler(method.encode)
    compiler.compile_forward(method)
    recipe = pretraining(method.name)[method.backbone.kind]
    trainer = SimpleNamespace(
        method=method, network=method, encode=encode, compare=method.compare, grad_scaler=None, device=device, views=views,
        drop_paths=paths, is_ddp=False, warn_once=lambda _: None, recipe=recipe, compiler=compiler,
        settings=SimpleNamespace(seed=0, accumulate=1), optimizer=build_optimizer(method.parameters(), recipe),
    )  # fmt: skip

    def batch(seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        lead = (int(number), views.regions) if views.regions > 1 else (int(number),)
        image = torch.randn(*lead, 1, *views.region_size, generator=generator)
        return {"image": image.to(device), "excluded": torch.zeros(image.shape, dtype=torch.bool, device=device)}

    return trainer, batch


def one(args: argparse.Namespace) -> None:
    """Compile and warm up, tell so, wait for the turn, measure; the last line is a row of JSON."""
    import torch

    from nnunet_ssl.trainers.loop import stepping

    began = time.time()
    trainer, make = build(args.one, args.patch, args.device)
    batches, cuda = [make(s) for s in range(2)], args.device == "cuda"
    optimizer, compiler = trainer.optimizer, trainer.compiler

    def step(index: int) -> torch.Tensor:
        def compute() -> Any:
            optimizer.zero_grad(set_to_none=True)
            return stepping.run_batch(trainer, batches[index % 2], 0, index)

        output = compiler.attempt(True, compute, compute)
        stepping.optimiser_step(trainer, output.loss)
        return output.loss

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    step(0)
    wait()
    first = time.time() - began
    for index in range(1, 7):
        step(index)
    wait()
    folder = Path(args.folder)
    (folder / f"ready_{os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)
    with open(folder / "turn", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for index in range(7, 10):
            step(index)
        wait()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        milliseconds, host = [], []
        for index in range(10, 10 + args.repeats):
            start = time.perf_counter()
            loss = step(index)
            host.append(time.perf_counter() - start)
            wait()
            milliseconds.append((time.perf_counter() - start) * 1e3)
        start = time.perf_counter()
        for index in range(20, 20 + args.repeats):
            step(index)
        wait()
        train = (time.perf_counter() - start) / args.repeats * 1e3  # steps queued one behind the other, as in training
        row = {
            "setting": args.one, "ms": train, "ms_alone": statistics.median(milliseconds),
            "host_ms": statistics.median(host) * 1e3, "first_s": first, "compiled": compiler.on,
            "loss": float(loss), "patch": args.patch,
            "allocated_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if cuda else 0.0,
            "card": torch.cuda.get_device_name(0) if cuda else "cpu", "torch": torch.__version__, "nnunetv2": version("nnunetv2"),
        }  # fmt: skip
        if "profile" in args.one.split(":"):
            from torch.profiler import ProfilerActivity, profile

            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
            with profile(activities=kinds) as found:
                step(40)
                wait()
            key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
            print(found.key_averages().table(sort_by=key, row_limit=45, max_name_column_width=100))
    print(json.dumps(row), flush=True)


def main() -> None:
    """Start all settings, let them be timed one by one, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="METHOD:BACKBONE:BATCH[:OPTION...]")
    parser.add_argument("-device", default="cuda")
    parser.add_argument("--patch", type=int, default=160, help="voxels per axis (default: 160)")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--compile-seconds", type=float, default=600, help="those that take longer are not timed")
    parser.add_argument("--json", help="write all rows there")
    parser.add_argument("--logs", default=None, help="folder for the output of each setting")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(args.logs or folder)
        logs.mkdir(parents=True, exist_ok=True)
        running = {}
        for setting in args.settings:
            command = [
                sys.executable,
                os.path.abspath(__file__),
                "--one",
                setting,
                "--folder",
                folder,
                "-device",
                args.device,
            ]
            command += ["--patch", str(args.patch), "--repeats", str(args.repeats)]
            log = open(logs / f"{setting.replace(':', '_')}.log", "w")  # noqa: SIM115  # the child's, until it ends
            environment = {**os.environ, "OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
            running[setting] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        until = time.time() + args.compile_seconds
        while time.time() < until:
            alive = {s: p for s, p in running.items() if p.poll() is None}
            if len(list(Path(folder).glob("ready_*"))) >= len(alive):
                break
            time.sleep(0.2)
        for setting, process in running.items():
            if process.poll() is None and not (Path(folder) / f"ready_{process.pid}").exists():
                print(f"{setting}: not ready after {args.compile_seconds:.0f} s, left out", flush=True)
                process.kill()
        time.sleep(1)
        (Path(folder) / "go").touch()
        rows = []
        for setting, process in running.items():
            process.wait()
            lines = (logs / f"{setting.replace(':', '_')}.log").read_text().strip().splitlines()
            if process.returncode or not lines:
                print(f"{setting}: ended with {process.returncode}: {lines[-1] if lines else ''}", flush=True)
                continue
            rows.append(json.loads(lines[-1]))
            said = [line for line in lines if line.startswith("WARNING")]
            print(table_row(rows[-1]), *said, flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps(rows, indent=1))


def table_row(row: dict[str, Any]) -> str:
    """One line for a person."""
    return (
        f"{row['setting']:40s} {row['ms']:8.1f} ms (alone {row['ms_alone']:.1f}, host {row['host_ms']:.1f}), "
        f"{row['allocated_gib']:.1f} GiB, reserved {row['reserved_gib']:.1f}; first step {row['first_s']:.0f} s, "
        f"{'compiled' if row['compiled'] else 'not compiled'}, loss {row['loss']:.4f}"
    )


if __name__ == "__main__":
    main()
