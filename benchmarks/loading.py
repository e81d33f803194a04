"""Time and memory of loading full-size checkpoints into full-size networks, each in a fresh process.

    python benchmarks/loading.py FIXTURES [--folder SCRATCH]

FIXTURES/BaseMAETrainer and FIXTURES/BaseEvaMAETrainer hold full_size.json with names and shapes of ResEnc-L and Primus-M
for patches of 160 voxels; their checkpoints are written with random values to SCRATCH (about 1.1 GB, removed afterwards).
Memory is what the process holds at its peak beyond what it held once everything was imported: it should not exceed the
size of the file plus that of the network.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20
TRAINERS = ("BaseMAETrainer", "BaseEvaMAETrainer")
FORMATS = ("pth", "safetensors")


def write(fixtures: Path, trainer: str, path: Path) -> None:
    """A published checkpoint of `trainer` with random values; aliased tensors share their storage as in real files."""
    import torch
    from safetensors.torch import save_file

    from nnunet_ssl.checkpoints.aliases import own_name

    record = json.loads((fixtures / trainer / "full_size.json").read_text())
    shared: dict[str, torch.Tensor] = {}
    for name, shape in record["shapes"].items():
        if own_name(name) not in shared:
            shared[own_name(name)] = torch.randn(shape)
    if path.suffix == ".safetensors":
        save_file({name: tensor for name, tensor in shared.items() if name in record["shapes"]}, path)
        return
    content: dict[str, Any] = {
        "network_weights": {name: shared[own_name(name)] for name in record["shapes"]},
        "trainer_name": trainer,
        "nnssl_adaptation_plan": record["adaptation_plan"],
    }
    torch.save(content, path)


def measure(path: Path, trainer: str) -> dict[str, float]:
    """Seconds of each step and peak memory in MiB, of this process."""
    from fixtures_table import FULL, primus, unet

    from nnunet_ssl.checkpoints.adaptation.adapt import adapt_checkpoint
    from nnunet_ssl.checkpoints.hub.download import sha256_of
    from nnunet_ssl.checkpoints.read import read_checkpoint
    from nnunet_ssl.integration import pretrained_weights  # noqa: F401  what nnU-Net's command has imported by then

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    network = primus(864, 16, 12, 160) if trainer == "BaseEvaMAETrainer" else unet(*FULL)
    built = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [time.perf_counter()]
    checkpoint = read_checkpoint(path)
    times.append(time.perf_counter())
    state, report = adapt_checkpoint(checkpoint, network)
    times.append(time.perf_counter())
    network.load_state_dict(state)
    times.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sha256_of(path)
    return {
        "file": path.stat().st_size / MIB,
        "network": sum(p.numel() * p.element_size() for p in network.parameters()) / MIB,
        "building": (built - before) / 1024,
        "read": times[1] - times[0],
        "adapt": times[2] - times[1],
        "load": times[3] - times[2],
        "sha256": time.perf_counter() - times[3],
        "peak": (peak - before) / 1024,
        "encoder": report.encoder_fraction,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("fixtures", type=Path, help="folder with BaseMAETrainer/ and BaseEvaMAETrainer/")
    parser.add_argument("--folder", type=Path, default=None, help="where the files are written (default: temporary)")
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "TRAINER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), arguments.measure[1])))
        return 0
    print("| trainer | file MiB | network MiB | read s | adapt s | load s | SHA-256 s | peak MiB | of file + network |")
    print(f"|{'---|' * 9}", flush=True)
    too_much = 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for trainer in TRAINERS:
            for suffix in FORMATS:
                path = Path(folder) / f"{trainer}.{suffix}"
                write(arguments.fixtures, trainer, path)
                command = [sys.executable, __file__, str(arguments.fixtures), "--measure", str(path), trainer]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                path.unlink()
                found = json.loads(output.splitlines()[-1])
                share = found["peak"] / (found["file"] + found["network"])
                too_much += share > 1
                seconds = " | ".join(f"{found[step]:.2f}" for step in ("read", "adapt", "load", "sha256"))
                print(
                    f"| {trainer}, {suffix} | {found['file']:.0f} | {found['network']:.0f} | {seconds} | "
                    f"{found['peak']:.0f} | {share:.0%} |",
                    flush=True,
                )
    return 1 if too_much else 0


if __name__ == "__main__":
    sys.exit(main())
