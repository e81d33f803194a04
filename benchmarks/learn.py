r"""Does every pretext task learn, with the presets as they are shipped, and is it worth anything on few labelled cases?

    python benchmarks/learn.py Dataset004_Hippocampus --output OUT --backbones resenc_tiny primus_tiny --epochs 8
    python benchmarks/learn.py Dataset004_Hippocampus --output OUT --backbones resenc_tiny primus_tiny --epochs 8 \
        --finetune mae simmim consistent_views --pretrainings 2 --finetune-epochs 14
    python benchmarks/learn.py Dataset004_Hippocampus --output GPU --backbones resenc_tiny primus_tiny --epochs 80 \
        --device cuda --minutes 8

Every task is pre-trained by `nnUNetv2_pretrain` on all images without labels, in its preset's own patch, batch, optimiser and
steps per epoch. The table has the loss reached on held-out images beside the yardstick (the loss of the best answer that does
not look at the image, `Method.yardstick`), and what tells whether a representation is alive. The tasks named by `--finetune`
are then compared with training from scratch by `nnUNetv2_pretrain_compare`, per backbone, on a few labelled cases; tested is on
cases that neither training has seen with a label.

Killed, or out of its `--minutes`, it goes on where it stopped when started again; what failed is tried again. Everything is
written into the output folder: results.json, results.md, the comparisons and the logs of all processes.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from few_labels import POOL, Protocol, comparison, environment, pretrained
from method_table import dice_table, learning_table

from nnunet_ssl.cli.pretrain_flags import BACKBONES
from nnunet_ssl.methods import get_method, method_names

LAST_MINUTES = 0.5  # before the end of `--minutes`: trainings save what they have


def build_parser() -> argparse.ArgumentParser:
    """All flags; the defaults let two CPU cores go through both tiny backbones in some hours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="nnU-Net raw data set with imagesTr and labelsTr")
    parser.add_argument("--output", type=Path, required=True, help="folder; one that is there is continued")
    parser.add_argument("--backbones", nargs="+", required=True, choices=sorted(BACKBONES))
    parser.add_argument("--methods", nargs="+", default=list(method_names()), choices=method_names())
    parser.add_argument("--epochs", type=int, default=8, help="of pre-training, with the preset's steps per epoch")
    parser.add_argument(
        "--pretrainings", type=int, default=1, help="with seeds 0, 1, ...; of tasks that are fine-tuned"
    )
    parser.add_argument("--finetune", nargs="*", default=[], choices=method_names(), help="tasks to fine-tune")
    parser.add_argument("--finetune-epochs", type=int, default=14, help="with the preset's steps per epoch")
    parser.add_argument("--seeds", type=int, default=3, help="so many, of cases and fine-tuning")
    parser.add_argument("--labelled", type=int, default=10, help="cases per seed")
    parser.add_argument("--test", type=int, default=80, help="cases")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--threads", type=int, help="per process; default: torch's")
    parser.add_argument("--minutes", type=float, help="stop after so many, ready to be continued")
    parser.add_argument("-device", "--device", default="cpu")
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
        epochs=args.epochs,
        finetune_epochs=args.finetune_epochs,
        labelled=args.labelled,
        test=args.test,
        seeds=args.seeds,
        device=args.device,
    )
    file = folder / "protocol.json"
    if file.is_file() and Protocol.read(folder) != protocol:
        sys.exit(f"{folder} holds results of another protocol, see {file}. Use its settings, or another --output.")
    file.write_text(protocol.to_json())
    return protocol


@dataclass(frozen=True)
class Job:
    """One training. `result` is there when it is done, those in `after` before it can begin."""

    name: str
    run: str  # its own nnUNet_results
    command: tuple[str, ...]
    result: Path
    after: tuple[Path, ...] = ()


def all_jobs(args: argparse.Namespace, folder: Path) -> list[Job]:
    """Pre-trainings, then fine-tunings, in the order of the flags."""
    program = str(Path(__file__).parent / "few_labels.py")
    pretrainings, comparisons = [], []
    for backbone in args.backbones:
        kind = "primus" if backbone.startswith("primus") else "unet"
        methods = [m for m in args.methods if kind in get_method(m).backbones]
        for method in methods:
            for number in range(args.pretrainings if method in args.finetune else 1):
                run = f"{backbone}/{method}/{number}"
                command = ["-m", "nnunet_ssl.pretrain", str(POOL), "--method", method, "--backbone", backbone]
                command += ["-device", args.device, "--epochs", str(args.epochs), "--set", f"seed={number}"]
                done = pretrained(folder, backbone, method, number)
                pretrainings.append(Job(f"{method} {number} on {backbone}", run, tuple(command), done))
        wanted = [(m, n) for m in methods if m in args.finetune for n in range(args.pretrainings)]
        if wanted:
            files = {f"{m}-{n}": pretrained(folder, backbone, m, n) for m, n in wanted}
            command = [program, str(folder), backbone, *(f"{name}={file}" for name, file in files.items())]
            done = comparison(folder, backbone) / "comparison.html"
            after = tuple(files.values())
            comparisons.append(Job(f"comparing on {backbone}", f"{backbone}/comparing", tuple(command), done, after))
    return pretrainings + comparisons


class Runner:
    """Jobs in fresh processes, several side by side, until all are done or the time is up."""

    def __init__(self, folder: Path, jobs: Sequence[Job], side_by_side: int, threads: int | None) -> None:
        self.folder, self.waiting, self.side_by_side, self.threads = folder, list(jobs), side_by_side, threads
        self.running: dict[subprocess.Popen[bytes], tuple[Job, float]] = {}
        self.failed: list[str] = []

    def run(self, seconds: float) -> Iterable[Job]:
        """Yield every job as soon as it is done."""
        end = time.monotonic() + seconds
        while (self.waiting or self.running) and time.monotonic() < end:
            self._start()
            if not self.running:
                break  # what the others wait for has failed
            yield from self._finished()
            time.sleep(0.2)
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            process.wait()

    def _start(self) -> None:
        for job in [j for j in self.waiting if all(file.is_file() for file in j.after)]:
            if len(self.running) < self.side_by_side:
                self.waiting.remove(job)
                log = self.folder / "logs" / f"{job.run.replace('/', '_')}.log"
                log.parent.mkdir(exist_ok=True)
                variables = {**os.environ, **environment(self.folder, job.run, self.threads)}
                with open(log, "a") as file:
                    command = [sys.executable, *job.command]
                    process = subprocess.Popen(command, env=variables, stdout=file, stderr=subprocess.STDOUT)
                self.running[process] = job, time.monotonic()

    def _finished(self) -> Iterable[Job]:
        for process in [p for p in self.running if p.poll() is not None]:
            job, start = self.running.pop(process)
            if process.returncode or not job.result.is_file():
                self.failed.append(job.name)
                print(f"{job.name}: failed with exit code {process.returncode}, see the logs", flush=True)
            else:
                print(f"{job.name}: {time.monotonic() - start:.0f} s", flush=True)
                yield job


def write_tables(folder: Path, protocol: Protocol) -> str:
    """results.json and results.md of what is there so far."""
    results, text = {}, ""
    for name, table in (("learning", learning_table), ("dice", dice_table)):
        results[name], markdown = table(folder, protocol)
        text += markdown
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    (folder / "results.md").write_text(text)
    return text


def main() -> None:
    """Do what is missing, and write the tables after every job."""
    args = build_parser().parse_args()
    folder = args.output.resolve()
    _lock = lock(folder)
    protocol = keep_protocol(args, folder)
    command = [sys.executable, str(Path(__file__).parent / "few_labels.py"), str(folder), *args.backbones]
    subprocess.run(command, env={**os.environ, **environment(folder, "preparing", args.threads)}, check=True)
    jobs = [job for job in all_jobs(args, folder) if not job.result.is_file()]
    runner = Runner(folder, jobs, args.jobs, args.threads)
    for _ in runner.run(60 * (args.minutes - LAST_MINUTES) if args.minutes else float("inf")):
        write_tables(folder, protocol)
    print(write_tables(folder, protocol))
    if runner.failed:
        sys.exit(f"Failed: {', '.join(runner.failed)}. Start again to try again.")
    if runner.waiting or runner.running:
        print(f"{len(runner.waiting) + len(runner.running)} jobs are left. Start again to go on.")


if __name__ == "__main__":
    main()
