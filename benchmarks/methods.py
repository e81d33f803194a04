r"""All pretext tasks on all backbones: time, losses and what they are worth on few labelled cases.

    python benchmarks/methods.py Dataset004_Hippocampus --output OUT --backbones resenc_tiny
    python benchmarks/methods.py Dataset004_Hippocampus --output OUT --backbones resenc_tiny --timing-only
    python benchmarks/methods.py Dataset004_Hippocampus --output OTHER --backbones primus_tiny \
        --iterations-per-epoch 100 --finetune-epochs 3

Every method is pre-trained once on all images without labels, for the same number of steps, with its published
settings and the preset's optimiser. Per seed, the network is then fine-tuned on a few labelled cases and tested on
cases that neither training has seen with a label; the twin from scratch, with the same plans, schedule, cases and seed,
is trained once per backbone. Losses at the start and at the end are means over the same validation batches, of images
held out from the pre-training, and beside them stands the loss of the best answer that does not look at the image
(`Method.yardstick` says what that is per method).

Killed, it goes on where it stopped when started again; what failed is tried again. `--timing-only` measures seconds per
iteration (data loading left out), in blocks that take turns: every block times a few steps of every method and divides
by those of `mae` on the same backbone, and the table shows the median. Run it while nothing else runs. Writes
results.json and results.md into the output folder and prints the table.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from few_labels import SCRATCH, Protocol, environment
from method_table import collect, markdown

from nnunet_ssl.cli.pretrain import BACKBONES
from nnunet_ssl.methods import get_method, method_names


def build_parser() -> argparse.ArgumentParser:
    """All flags; the defaults let a CPU core go through a backbone in about an hour."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="nnU-Net raw data set with imagesTr and labelsTr")
    parser.add_argument("--output", type=Path, required=True, help="folder; one that is there is continued")
    parser.add_argument("--backbones", nargs="+", required=True, choices=sorted(BACKBONES))
    parser.add_argument("--methods", nargs="+", default=list(method_names()), choices=method_names())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labelled", type=int, default=10, help="cases per seed")
    parser.add_argument("--test", type=int, default=20, help="cases")
    parser.add_argument("--patch-size", type=int, nargs="+", default=[24, 40, 24], help="voxels")
    parser.add_argument("--iterations-per-epoch", type=int, default=50)
    parser.add_argument("--val-iterations", type=int, default=10, help="batches on which the losses are computed")
    parser.add_argument("--pretrain-epochs", type=int, default=5)
    parser.add_argument("--finetune-epochs", type=int, default=2)
    parser.add_argument("--timing-only", action="store_true", help="measure seconds per iteration, train nothing")
    parser.add_argument("--blocks", type=int, default=7, help="of --timing-only")
    parser.add_argument("-device", default="cpu")
    return parser


def lock(folder: Path) -> IO[str]:
    """Keep the folder to this run until it ends: two would delete each other's unfinished trainings."""
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / "lock", "w")  # noqa: SIM115  open for as long as the process lives
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"Another run works in {folder}. Wait for it, or use another --output.")
    return file


def keep_protocol(args: argparse.Namespace, folder: Path) -> Protocol:
    """Write the protocol down, or check that the results in the folder were made with the same one."""
    protocol = Protocol(
        data=str(args.data.resolve()),
        patch_size=tuple(args.patch_size),
        pretrain_epochs=args.pretrain_epochs,
        finetune_epochs=args.finetune_epochs,
        iterations_per_epoch=args.iterations_per_epoch,
        val_iterations=args.val_iterations,
        labelled=args.labelled,
        test=args.test,
        seeds=tuple(args.seeds),
        device=args.device,
    )
    file = folder / "protocol.json"
    if file.is_file() and Protocol.read(folder) != protocol:
        sys.exit(f"{folder} holds results of another protocol, see {file}. Use its settings, or another --output.")
    file.write_text(protocol.to_json())
    return protocol


def wanted(methods: list[str], backbones: list[str]) -> list[tuple[str, str]]:
    """(method, backbone) in the order of work: per backbone the twins from scratch, then the methods it supports."""
    pairs = []
    for backbone in backbones:
        kind = "primus" if backbone.startswith("primus") else "unet"
        pairs += [(m, backbone) for m in (SCRATCH, *methods) if m == SCRATCH or kind in get_method(m).backbones]
    return pairs


def run_in_fresh_process(script: str, folder: Path, run: str, arguments: list[str]) -> bool:
    """Whether it worked; its output goes to a log file."""
    log = folder / "logs" / f"{'_'.join([run, *arguments])}.log"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, str(Path(__file__).parent / script), str(folder), *arguments]
    with open(log, "a") as file:
        variables = {**os.environ, **environment(folder, run)}
        done = subprocess.run(command, env=variables, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        print(f"  failed with exit code {done.returncode}, see {log}", flush=True)
    return done.returncode == 0


def main() -> None:
    """Do what is missing, pair by pair, and write the table after each."""
    args = build_parser().parse_args()
    folder = args.output.resolve()
    _lock = lock(folder)
    protocol = keep_protocol(args, folder)
    pairs = wanted(args.methods, args.backbones)
    failed = []
    if args.timing_only:
        for backbone in args.backbones:
            names = [m for m, b in pairs if b == backbone and m != SCRATCH]
            print(f"timing {', '.join(names)} on {backbone}", flush=True)
            if not run_in_fresh_process("method_times.py", folder, "timing", [backbone, str(args.blocks), *names]):
                failed.append(f"timing on {backbone}")
            write_table(folder, protocol, pairs)
    else:
        for number, (method, backbone) in enumerate(pairs, start=1):
            print(f"[{number}/{len(pairs)}] {method} on {backbone}", flush=True)
            start = time.monotonic()
            if not run_in_fresh_process("few_labels.py", folder, method, [method, backbone]):
                failed.append(f"{method} on {backbone}")
            print(f"  {time.monotonic() - start:.0f} s", flush=True)
            write_table(folder, protocol, pairs)
    print(write_table(folder, protocol, pairs))
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}. Start again to try again.")


def write_table(folder: Path, protocol: Protocol, pairs: list[tuple[str, str]]) -> str:
    """results.json and results.md of what is there so far."""
    rows: list[dict[str, Any]] = collect(folder, protocol, pairs)
    (folder / "results.json").write_text(json.dumps({"arguments": sys.argv[1:], "rows": rows}, indent=2))
    table = markdown(protocol, rows)
    (folder / "results.md").write_text(table)
    return table


if __name__ == "__main__":
    main()
