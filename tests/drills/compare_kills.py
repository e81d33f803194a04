"""Kill comparisons at random moments, and see whether anything is lost or done twice: python tests/drills/compare_kills.py FOLDER

A comparison of tiny networks on tiny generated images (two arms, two seeds) is run once without disturbance. Then it is run again
and again: after a random time KILL, TERM, INT or USR1 is sent to the command, or to its whole group; sometimes two processes work
on the folder at once, and one gets it. What was killed is started again, until all cells are finished. Then scores.csv has
to be that of the undisturbed one, byte by byte; no finished cell may have been touched again; no process may be left behind.

    --kills N    so many kills (20)
    --seed S     of everything random (0)
    --longest T  seconds until a kill, at most (25)

Prints a line per kill and a count at the end; exit code 1 where something was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk

NAME, CASES, ARMS, SEEDS = "Dataset802_Compare", 6, "ab", (0, 1)
MARK = "NNUNET_SSL_COMPARE_DRILL"
PATIENCE = 120.0  # seconds after which a process that should have ended is left behind
SIGNALS = ("KILL", "TERM", "INT", "USR1")
RUN = "nnunet_ssl.run"


def write_images(raw: Path) -> None:
    """Noise with a bright ball, and the ball as the label."""
    generator = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, 24),) * 3, indexing="ij")
    for name in ("imagesTr", "labelsTr"):
        (raw / NAME / name).mkdir(parents=True)
    for number in range(CASES):
        ball = sum((a - c) ** 2 for a, c in zip(axes, generator.uniform(-0.3, 0.3, 3), strict=True)) < 0.2
        image = sitk.GetImageFromArray((generator.normal(size=ball.shape) + 3 * ball).astype(np.float32))
        sitk.WriteImage(image, str(raw / NAME / "imagesTr" / f"ball_{number}_0000.nii.gz"))
        label = sitk.GetImageFromArray(ball.astype(np.uint8))
        sitk.WriteImage(label, str(raw / NAME / "labelsTr" / f"ball_{number}.nii.gz"))
    labels = {"background": 0, "ball": 1}
    content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": CASES, "file_ending": ".nii.gz"}
    (raw / NAME / "dataset.json").write_text(json.dumps(content))


class Drill:
    """The folders, the commands and what was found wrong."""

    def __init__(self, folder: Path, seed: int, longest: float) -> None:
        self.folder, self.random, self.longest = folder, random.Random(seed), longest
        self.mark = f"{os.getpid()}-{seed}"
        names = ("raw", "preprocessed", "results")
        self.environment = {
            **os.environ,
            **{f"nnUNet_{name}": str(folder / name) for name in names},
            **{"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1", MARK: self.mark},
        }
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()

    def command(self, out: Path, first: bool) -> list[str]:
        """The first start describes the comparison, the others go on."""
        argv = [sys.executable, "-m", RUN, "nnUNetv2_pretrain_compare", "-o", str(out), "-device", "cpu", "-np", "1"]
        if not first:
            return argv
        arms = [f"{arm}={self.weights}" for arm in ARMS]
        argv += [
            "-d",
            "802",
            "--no-scratch",
            "-p",
            "nnUNetSSLPrimusTinyPlans",
            "--labelled",
            "2",
            "--seeds",
            str(len(SEEDS)),
        ]
        return [*argv, "--epochs", "3", "--iterations-per-epoch", "3", "-pretrained_weights", *arms]

    @property
    def weights(self) -> Path:
        run = "SSLMAETrainer__nnUNetSSLPrimusTinyPlans__3d_fullres"
        return self.folder / "results" / NAME / run / "fold_all" / "checkpoint_final.pth"

    def prepare(self) -> None:
        """Images, and a pre-training."""
        if not (self.folder / "raw").is_dir():
            write_images(self.folder / "raw")
        argv = [sys.executable, "-m", RUN, "nnUNetv2_pretrain", "802", "--backbone", "primus_tiny", "--epochs", "1"]
        argv += [
            "--iterations-per-epoch",
            "2",
            "--val-iterations-per-epoch",
            "1",
            "--patch-size",
            "16",
            "-np",
            "1",
            "-device",
            "cpu",
        ]
        subprocess.run(argv, env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        """The command, in a group of its own, so that a group can be killed; its output is kept beside the comparison."""
        log = out.with_suffix(".log").open("ab")
        with log:
            return subprocess.Popen(
                self.command(out, not (out / "comparison.json").exists()),
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finished(self, out: Path) -> dict[Path, int]:
        """The logs of finished cells with their sizes: they must not grow any more."""
        found = {}
        for record in (out / "cells").glob("*/*/*/*/*/cell.json"):
            if json.loads(record.read_text())["state"] == "finished":
                found[record.parent / "log.txt"] = (record.parent / "log.txt").stat().st_size
        return found

    def left_behind(self) -> list[int]:
        """Living processes of this drill, after waiting for those that are saving."""
        end = time.monotonic() + PATIENCE
        while living := self._marked():
            if time.monotonic() > end:
                return living
            time.sleep(0.2)
        return []

    def _marked(self) -> list[int]:
        found, mark = [], f"{MARK}={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def kill_some(self, out: Path) -> int:
        """Start one or two processes, and kill each after a random time of its own; returns how many were killed."""
        before = self.finished(out)
        processes = [self.start(out) for _ in range(1 + (self.random.random() < 0.3))]
        killed = sum([self.kill(process, out, len(processes)) for process in processes])
        self.complain(bool(left := self.left_behind()), f"{out.name}: left behind: {left}")
        for log, size in before.items():
            self.complain(log.stat().st_size != size, f"{log} of a finished cell has grown")
        return killed

    def kill(self, victim: subprocess.Popen[bytes], out: Path, among: int) -> bool:
        """Kill a process, or its group, after a random time; False where it had ended before."""
        name, group = self.random.choice(SIGNALS), self.random.random() < 0.5
        number, seconds = signal.Signals[f"SIG{name}"], self.random.uniform(0.5, self.longest)
        begun = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            code = victim.wait(seconds)
            self.complain(code != 0, f"{out.name}: ended by itself with {code}, see {out.with_suffix('.log')}")
            return False
        if group:
            os.killpg(victim.pid, number)
        else:
            victim.send_signal(number)
        code = victim.wait()
        expected = {-number, 128 + number}
        if code not in expected:
            # It was about to end by itself.
            self.complain(code != 0, f"{out.name}: exit code {code} after {name}")
        where = "group" if group else "process"
        self.counts[f"{name} to the {where}"] += 1
        states = Counter(json.loads(f.read_text())["state"] for f in (out / "cells").glob("*/*/*/*/*/cell.json"))
        took = f"after {time.monotonic() - begun:.1f} s"
        print(f"{out.name}: {name} to the {where} of {among}, {took}: {dict(states)}", flush=True)
        return True

    def complain(self, wrong: bool, what: str) -> None:
        """Remember what is wrong."""
        if wrong:
            self.wrong.append(what)
            print(f"WRONG: {what}", flush=True)

    def finish(self, out: Path, expected: bytes) -> None:
        """Leave a comparison alone until it ends, and compare it."""
        before = self.finished(out)
        code = self.start(out).wait()
        self.complain(code != 0, f"{out.name}: the last start ended with {code}, see {out.with_suffix('.log')}")
        for log, size in before.items():
            self.complain(log.stat().st_size != size, f"{log} of a finished cell has grown")
        same = code == 0 and (out / "scores.csv").read_bytes() == expected
        self.complain(not same, f"{out.name}: its scores are not those of the undisturbed one")
        text = out.with_suffix(".log").read_text(errors="replace")
        self.complain("Traceback" in text, f"{out.name}: a traceback, see {out.with_suffix('.log')}")


def main() -> int:
    """Run the drill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=25.0)
    args = parser.parse_args()
    drill = Drill(args.folder.resolve(), args.seed, args.longest)
    drill.folder.mkdir(parents=True, exist_ok=True)
    drill.prepare()
    undisturbed = drill.folder / "undisturbed"
    drill.complain(drill.start(undisturbed).wait() != 0, "the undisturbed comparison failed")
    expected = (undisturbed / "scores.csv").read_bytes()
    lines = expected.decode().splitlines()[1:]
    parts = [sorted(line.split(",", 2)[2] for line in lines if line.split(",")[1] == arm) for arm in ARMS]
    drill.complain(parts[0] != parts[1], "two arms with the same weights have other scores")
    kills = chains = 0
    while kills < args.kills:
        out = drill.folder / f"chain_{chains}"
        shutil.rmtree(out, ignore_errors=True)
        out.with_suffix(".log").unlink(missing_ok=True)
        while kills < args.kills and len(drill.finished(out)) < len(ARMS) * len(SEEDS):
            kills += drill.kill_some(out)
        drill.finish(out, expected)
        chains += 1
    print(f"{kills} kills in {chains} comparisons ({dict(drill.counts)}): {len(drill.wrong)} wrong")
    return 1 if drill.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
