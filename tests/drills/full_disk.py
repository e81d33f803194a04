"""Every command on a full disk and in a read-only folder: one line that says where, how much room there is and what to type.

    python tests/drills/full_disk.py [--scratch FOLDER] [--only WORD] [--leave BYTES ...] [--keep-output]

Makes a tiny data set, a pre-training and plans for a fine-tuning once (about a minute on two cores), and then runs each
command with one of its folders on a small disk: full but for a few bytes, or read-only. Where this user may mount file
systems (root), the disk is a tmpfs. Elsewhere, and with FULL_DISK_WITHOUT_MOUNTS set, a limit on the size of files stands
for the full disk and permissions for the read-only one; trainings, whose memory is shared in files, are left out of the
first kind. After each run: no traceback, one line that names the folder, everything that was there before unchanged, no
temporary file left. Prints a line per run and a count; exits with 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "out")
SHORT = ["--epochs", "1", "--iterations-per-epoch", "2", "--val-iterations-per-epoch", "1", "--batch-size", "2"]
TRAIN = ["nnUNetv2_pretrain", "900", "--backbone", "resenc_tiny", *SHORT, "-np", "1", "-device", "cpu"]
RUN = "Dataset900_Tiny/SSLMAETrainer__nnUNetSSLResEncTinyPlans__3d_fullres/fold_all"
DISK = 160 << 20  # bytes
MOUNT = os.environ.get("FULL_DISK_WITHOUT_MOUNTS") is None
SETTINGS = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


@dataclass(frozen=True)
class Command:
    """A command, the folder of its that lies on the small disk, and what is taken away before so that it has work to do."""

    name: str
    arguments: list[str]
    disk: str
    remove: tuple[str, ...] = ()
    read_only_is_fine: bool = False  # there is nothing to write


def commands(world: Path) -> list[Command]:
    """All of them, with `world` for the folders."""
    results, out = world / "nnUNet_results", world / "out"
    checkpoint = str(results / RUN / "checkpoint_final.pth")
    run = f"nnUNet_results/{RUN}"
    plan = ["nnUNetv2_plan_finetune", "-d", "900", "-pretrained_weights", checkpoint, "-plans_name", "Mine", "-np", "1"]
    finetune = [
        *("nnUNetv2_train", "900", "3d_fullres", "all", "-tr", "SSLFinetuneTrainer", "-p", "nnUNetSSLResEncTinyPlans"),
        *("-pretrained_weights", checkpoint, "-device", "cpu"),
    ]
    export = ["nnUNetv2_pretrain_export", checkpoint, "-o", str(out / "model")]
    benchmark = [
        *("nnUNetv2_pretrain_benchmark", "--backbone", "resenc_tiny", "-device", "cpu", "--patch-size", "16"),
        *("--batch-size", "2", "--iterations", "5", "--warmup", "1", "--workers", "1"),
    ]
    stock = ["-d", "900", "-np", "1"]
    prepared = "nnUNet_preprocessed/Dataset900_Tiny"
    return [
        Command(
            "import", ["nnUNetv2_pretrain_import", "-i", str(world / "scans"), "-d", "901", "-n", "New"], "nnUNet_raw"
        ),
        Command("page", ["nnUNetv2_pretrain_corpus", "-d", "900", "--html", str(out / "page.html"), "-np", "1"], "out"),
        Command("fingerprint", [*TRAIN, "--preprocess-only"], "nnUNet_preprocessed", (prepared,)),
        Command(
            "preprocess",
            [*TRAIN, "--preprocess-only"],
            "nnUNet_preprocessed",
            (f"{prepared}/nnUNetSSLResEncTinyPlans_3d_fullres",),
        ),
        Command(
            "nnU-Net's fingerprint",
            ["nnUNetv2_extract_fingerprint", *stock, "-fpe", "SSLFingerprintExtractor"],
            "nnUNet_preprocessed",
            (prepared,),
        ),
        Command(
            "nnU-Net's plan",
            ["nnUNetv2_plan_experiment", *stock[:2], "-pl", "SSLPlannerResEncTiny"],
            "nnUNet_preprocessed",
        ),
        Command(
            "nnU-Net's preprocess",
            ["nnUNetv2_preprocess", *stock, "-plans_name", "nnUNetSSLResEncTinyPlans", "-c", "3d_fullres"],
            "nnUNet_preprocessed",
            (f"{prepared}/nnUNetSSLResEncTinyPlans_3d_fullres",),
        ),
        Command("train", TRAIN, "nnUNet_results", (run,)),
        Command("train, preprocessed read-only", TRAIN, "nnUNet_preprocessed", (run,), read_only_is_fine=True),
        Command("export", [*export], "out"),
        Command("export safetensors", [*export, "--format", "safetensors"], "out"),
        Command("plan", plan, "nnUNet_preprocessed"),
        Command("fine-tune", finetune, "nnUNet_results"),
        Command("fine-tune, preprocessed read-only", finetune, "nnUNet_preprocessed", read_only_is_fine=True),
        Command("estimate", [*TRAIN, "--estimate"], "nnUNet_preprocessed", (run,), read_only_is_fine=True),
        Command("benchmark", [*benchmark, "--json", str(out / "x.json"), "--picture", str(out / "x.png")], "out"),
    ]


def make_world(world: Path) -> None:
    """The data, the pre-training and whatever else the commands start from."""
    import SimpleITK as sitk

    for name in FOLDERS:
        (world / name).mkdir(parents=True)
    folder, generator = world / "nnUNet_raw/Dataset900_Tiny", np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (20, 24, 28)), indexing="ij")
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    (world / "scans").mkdir()
    for number in range(6):
        ball = sum((a - c) ** 2 for a, c in zip(axes, generator.uniform(-0.3, 0.3, 3), strict=True)) < 0.2
        image = sitk.GetImageFromArray((generator.normal(size=ball.shape) + 3 * ball).astype(np.float32))
        sitk.WriteImage(image, str(folder / f"imagesTr/tiny_{number}_0000.nii.gz"))
        sitk.WriteImage(image, str(world / f"scans/scan_{number}.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(ball.astype(np.uint8)), str(folder / f"labelsTr/tiny_{number}.nii.gz"))
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "ball": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**description, "numTraining": 6}))
    done = run(TRAIN, world)
    assert done.returncode == 0, done.stderr
    plans = world / "nnUNet_preprocessed/Dataset900_Tiny/nnUNetSSLResEncTinyPlans.json"
    content = json.loads(plans.read_text())
    content["configurations"]["3d_fullres"]["finetune"].update(
        num_epochs=1, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1
    )
    plans.write_text(json.dumps(content))


def run(
    arguments: list[str], world: Path, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command in a fresh process, with nnU-Net's folders in `world`; `before` is called in the child."""
    program = str(Path(sys.executable).parent / arguments[0])
    environment = {**os.environ, **SETTINGS, **{name: str(world / name) for name in FOLDERS[:3]}}
    return subprocess.run(
        [program, *arguments[1:]], env=environment, capture_output=True, text=True, timeout=600, preexec_fn=before
    )


class Disk:
    """A small file system at a folder, or what stands for one where this user cannot mount any."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounted = os.geteuid() == 0 and MOUNT and self._mount("-t", "tmpfs", "-o", f"size={DISK}", "tmpfs")

    def _mount(self, *options: str) -> bool:
        return subprocess.run(["mount", *options, str(self.folder)], capture_output=True).returncode == 0

    def stands_for(self, command: Command, mode: str) -> bool:
        """Whether a command can be tried here: a limit on the size of files binds the memory that processes share, too."""
        return (
            self.mounted
            or mode != "full"
            or not command.name.startswith(("train", "fine-tune", "estimate", "benchmark"))
        )

    def fill(self, leaving: int) -> Callable[[], None]:
        """Fill it but for `leaving` bytes; returns what the child has to call."""
        if self.mounted:
            pages = os.statvfs(self.folder)
            with open(self.folder / "ballast", "wb") as file:
                file.write(bytes(max(0, pages.f_bavail * pages.f_frsize - leaving)))
            return lambda: None
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (leaving, leaving))

    def forbid(self) -> Callable[[], None]:
        """Make it read-only; returns what the child has to call."""
        if self.mounted:
            assert self._mount("-o", "remount,ro")
            return lambda: None
        for path in [self.folder, *self.folder.rglob("*")]:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        return bound_by_permissions

    def end(self) -> None:
        """Take it away."""
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)


def bound_by_permissions() -> None:
    """Permissions do not bind root, unless it gives up what makes it so; the program that is started then has it not."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@contextmanager
def small_disk(template: Path, world: Path, command: Command) -> Iterator[Disk]:
    """A copy of the template at `world`, one of its folders on a small disk."""
    shutil.rmtree(world, ignore_errors=True)
    shutil.copytree(template, world, ignore=lambda folder, _: [command.disk] if Path(folder) == template else [])
    (world / command.disk).mkdir()
    disk = Disk(world / command.disk)
    try:
        shutil.copytree(template / command.disk, world / command.disk, dirs_exist_ok=True)
        for path in command.remove:
            shutil.rmtree(world / path)
        yield disk
    finally:
        disk.end()


def content(folder: Path) -> dict[str, str]:
    """{file: digest} of what must not change."""
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != "ballast" and "training_log" not in f.name]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def faults(
    command: Command, done: subprocess.CompletedProcess[str], disk: Path, before: dict[str, str], mode: str
) -> list[str]:
    """What is wrong with the way a command ended."""
    found, after = [], content(disk)
    text = done.stdout + done.stderr
    if "Traceback (most recent call last)" in text:
        found.append("traceback")
    changed = [
        f
        for f in before
        if f in after and after[f] != before[f] and not f.endswith(("progress.png", "debug.json", "/plans.json"))
    ]
    gone = [f for f in before if f not in after]
    if mode == "full" and gone:
        found.append(f"gone: {gone[:3]}")
    if done.returncode and changed:
        found.append(f"changed: {changed[:3]}")
    left = [f for f in after if f.endswith(".tmp") or ".tmp." in f]
    if left:
        found.append(f"left behind: {left[:3]}")
    if done.returncode < 0:
        found.append(f"killed by signal {-done.returncode}")
    if done.returncode == 0 and mode == "read-only" and not command.read_only_is_fine:
        found.append("no error")
    if done.returncode and mode == "read-only" and command.read_only_is_fine:
        found.append("an error though there was nothing to write")
    if done.returncode:
        last = [line for line in done.stderr.strip().splitlines() if line.strip()][-1:]
        if not last or str(disk) not in last[0] or ("bytes free" not in last[0] and "writable" not in last[0]):
            found.append("no line that says where and why")
    return found


def main() -> int:
    """Run the drill; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--only", default="", help="commands whose name holds this word")
    parser.add_argument(
        "--leave", type=int, nargs="+", default=[0, 20_000, 200_000], help="bytes left on the full disk"
    )
    parser.add_argument("--keep-output", action="store_true", help="print what failing commands printed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        template, world = Path(scratch, "template"), Path(scratch, "world")
        make_world(template)
        total = wrong = 0
        for command in commands(world):
            if args.only not in command.name:
                continue
            for mode, leaving in [*(("full", n) for n in args.leave), ("read-only", 0)]:
                with small_disk(template, world, command) as disk:
                    if not disk.stands_for(command, mode):
                        continue
                    kept = content(disk.folder)
                    before = disk.fill(leaving) if mode == "full" else disk.forbid()
                    done = run(command.arguments, world, before)
                    found = faults(command, done, disk.folder, kept, mode)
                total += 1
                wrong += bool(found)
                label = f"{command.name}, {mode}" + (f" but for {leaving} bytes" if mode == "full" else "")
                print(
                    f"{'WRONG' if found else 'ok   '} {label}: exit code {done.returncode} {'; '.join(found)}",
                    flush=True,
                )
                if found and args.keep_output:
                    print(f"{done.stdout[-1500:]}\n--- stderr\n{done.stderr[-2500:]}\n", flush=True)
    print(f"{total - wrong} of {total} as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
