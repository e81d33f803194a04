"""Kill pre-trainings at random moments, and see whether anything is lost: python tests/drills/kills.py FOLDER --kills 200

Victims are real commands on tiny generated images. A chain is one run that is killed again and again, each time in a phase
(fingerprint, preprocessing, training, writing a checkpoint, validation), by `kill -9`, TERM, USR1 or INT, sent to the process or
to its group (one process, two of `--num-gpus 2`, torchrun with two). After every kill: the exit code, no traceback, no
process left behind, nothing lost beyond the running epoch. Then the chain is left alone, and has to end as a run that nobody
disturbed: weights, optimiser, log and validation bit by bit. What TERM, USR1 and INT saved is in that comparison.

    --kills N            so many kills (200)
    --between-epochs N   N runs that get a signal between two epochs, sent by themselves at a known place, instead
    --plan CHAINS        chains as MODE:PHASE-SIGNAL,PHASE-SIGNAL,... instead, e.g. group:training-TERM,writing-KILL
    --seed S             of everything random (0)
    --epochs N           of every run (8)
    --forked             victims of one process are forked from this one, which has imported everything: twice as many an hour

The same command again goes on where it stopped: results.jsonl in FOLDER holds what was done. Prints a table; exit code 1 where
something was lost, left behind or different.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

# Before torch is there: a fork would lose its threads, and on a busy machine threads that wait actively take all the time.
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
sys.path.insert(0, str(Path(__file__).parent))
from same_run import differing

PHASES = ("fingerprint", "preprocessing", "training", "writing", "validation")
MODES = ("process", "group", "several", "torchrun")
ORDER = ("process", "group", "process", "several", "process", "group", "group", "torchrun")  # by what a kill costs
SIGNALS = ("KILL", "TERM", "USR1", "INT")
SAVING = ("TERM", "USR1", "INT")
NAME, CASES = "Dataset801_Drill", 8
FLAGS = ["801", "--backbone", "resenc_tiny", "--iterations-per-epoch", "4", "--val-iterations-per-epoch", "1"]
FLAGS += ["--batch-size", "2", "--patch-size", "32", "--set", "save_every=1", "-np", "2", "-device", "cpu"]
RUN = Path("results") / NAME / "SSLMAETrainer__nnUNetSSLResEncTinyPlans__3d_fullres" / "fold_all"
BEGUN = "please cite:"  # the end of the summary with which a training starts
PATIENCE = 240.0  # seconds after which a victim hangs
MARK = "NNUNET_SSL_DRILL"


@dataclass
class Kill:
    """One kill and what was found after it; `wrong` is empty where all is well."""

    chain: str
    mode: str
    phase: str
    signal: str
    exit_code: int | None = None
    position: str = ""
    wrong: list[str] = field(default_factory=list)


def write_images(raw: Path) -> None:
    """A data set without labels: noise with a bright ball."""
    (raw / NAME / "imagesTr").mkdir(parents=True)
    generator = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, 40),) * 3, indexing="ij")
    for number in range(CASES):
        ball = sum((a - c) ** 2 for a, c in zip(axes, generator.uniform(-0.3, 0.3, 3), strict=True)) < 0.2
        image = sitk.GetImageFromArray((generator.normal(size=ball.shape) + 3 * ball).astype(np.float32))
        sitk.WriteImage(image, str(raw / NAME / "imagesTr" / f"case_{number:02d}_0000.nii.gz"))
    (raw / NAME / "dataset.json").write_text(
        json.dumps(
            {"channel_names": {"0": "MR"}, "labels": {"background": 0}, "numTraining": CASES, "file_ending": ".nii.gz"}
        )
    )


class Forked:
    """A pre-training in a fork of this process, with what of a Popen is needed."""

    def __init__(self, output: int, environment: dict[str, str], ambush: Any, flags: list[str]) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code: Any = 1
        try:
            os.setsid()
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            os.environ.update(environment)
            run(ambush, flags)
            code = 0
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
        finally:
            multiprocessing.util._exit_function()
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 1)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, seconds: float = 1e9) -> int:
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a fork", seconds)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode


class Place:
    """nnU-Net's folders of one chain, and how its command is started there."""

    def __init__(self, folder: Path, mode: str, options: argparse.Namespace) -> None:
        self.folder, self.mode, self.starts = folder, mode, 0
        self.flags = [*FLAGS, "--epochs", str(options.epochs)]
        self.forked = options.forked and mode in ("process", "group")
        self.mark = f"{folder.name}-{os.getpid()}-{random.random()}"
        self.session = 0  # of the last start; those of torchrun's processes have the mark alone

    @property
    def run(self) -> Path:
        return self.folder / RUN

    def begin(self, prepared: Path | None) -> None:
        """Images alone, or, with `prepared`, what another place has preprocessed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        if prepared is None:
            write_images(self.folder / "raw")
        else:
            shutil.copytree(prepared / "raw", self.folder / "raw")
            shutil.copytree(prepared / "preprocessed", self.folder / "preprocessed")
        for name in ("preprocessed", "results"):
            (self.folder / name).mkdir(exist_ok=True)

    def start(self, ambush: tuple[str, str, int] | None = None) -> tuple[Any, Path]:
        """A process in a group of its own, and the file of its output; `ambush` as in `run`."""
        self.starts += 1
        log = self.folder / f"output_{self.starts:03d}.txt"
        environment = {f"nnUNet_{n}": str(self.folder / n) for n in ("raw", "preprocessed", "results")}
        environment |= {"nnUNet_n_proc_DA": "2", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", MARK: self.mark}
        environment |= {"PYTHONWARNINGS": "ignore"}
        if self.mode in ("process", "group"):
            environment["LOCAL_WORLD_SIZE"] = str(os.cpu_count())  # one thread: others may be using this machine
        process: Any
        with log.open("wb") as file:
            if self.forked:
                process = Forked(file.fileno(), environment, ambush, self.flags)
            else:
                process = subprocess.Popen(
                    self.command() if ambush is None else self.ambushed(ambush),
                    env={**os.environ, **environment},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        self.session = process.pid
        return process, log

    def ambushed(self, ambush: tuple[str, str, int]) -> list[str]:
        return [sys.executable, __file__, "--victim", *map(str, ambush), *self.flags]

    def command(self) -> list[str]:
        module = ["-m", "nnunet_ssl.pretrain", *self.flags]
        if self.mode == "torchrun":
            start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            return [sys.executable, *start, *module]
        return [sys.executable, *module, *(["--num-gpus", "2"] if self.mode == "several" else [])]

    def finish(self) -> int:
        """Let the command run to its end; its exit code."""
        process, _ = self.start()
        return wait_for_end(process)

    def left_behind(self) -> list[int]:
        """Processes of this place that still live; they are given a few seconds to notice."""
        found: list[int] = []
        end = time.monotonic() + 30
        while time.monotonic() < end:
            found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._owns(pid)]
            if not found:
                break
            time.sleep(0.2)
        return found

    def _owns(self, pid: int) -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if state[0] == "Z":
                return False
            if int(state[3]) == self.session:
                return True
            return f"{MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def position(self) -> tuple[int, int] | None:
        """(epoch, iteration) in which the run would go on."""
        from nnunet_ssl.checkpoints.read import read_latest
        from nnunet_ssl.errors import CheckpointError
        from nnunet_ssl.trainers.loop.state import RESUME_ORDER

        if not any((self.run / name).exists() for name in RESUME_ORDER):
            return None
        try:
            saved, _, notes = read_latest(self.run, RESUME_ORDER)
        except CheckpointError:
            return None
        return None if notes else (saved["current_epoch"], len(saved["finished_iterations"]))


def wait_for_end(process: Any) -> int:
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return -999


def wait_for_phase(phase: str, place: Place, process: Any, log: Path, chance: random.Random) -> bool:
    """Return True at a random moment of the phase, False where the run has ended before."""
    said = {
        "fingerprint": ("extracting the fingerprint", 1.5),
        "preprocessing": (": preprocessing ", 1.5),
        "training": (BEGUN, 2.0),
        "writing": (BEGUN, 0.0),
        "validation": ("Training done.", 0.7),
    }
    text, seconds = said[phase]
    end = time.monotonic() + PATIENCE
    while text not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > end:
            return False
        time.sleep(0.02)
    if phase == "writing":
        after = chance.randrange(3)  # not always the first file
        while process.poll() is None and time.monotonic() < end:
            if any(place.run.glob(".checkpoint_*.tmp*")):
                after -= 1
                if after < 0:
                    return True
                time.sleep(0.2)
            time.sleep(0.0005)
        return False
    time.sleep(chance.uniform(0, seconds))
    return process.poll() is None


def kill_once(kill: Kill, place: Place, chance: random.Random) -> bool:
    """Start the victim, kill it, look; False where it had ended before."""
    before = place.position()
    process, log = place.start()
    if not wait_for_phase(kill.phase, place, process, log, chance):
        kill.exit_code = wait_for_end(process)
        if kill.exit_code != 0:
            kill.wrong.append(f"ended by itself, see {log}")
        return False
    number = getattr(signal, f"SIG{kill.signal}")
    with suppress(ProcessLookupError):
        (os.kill if kill.mode == "process" else os.killpg)(process.pid, number)
    kill.exit_code = wait_for_end(process)
    look(kill, place, log, number, before)
    return True


def look(kill: Kill, place: Place, log: Path, number: int, before: tuple[int, int] | None) -> None:
    """Note what is wrong after a kill."""
    left = place.left_behind()
    if left:
        kill.wrong.append(f"left behind: {left}")
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    output = log.read_text(errors="replace")
    expected = {-number} if kill.signal == "KILL" else {128 + number}
    if kill.mode != "torchrun" and kill.exit_code not in expected | {0}:
        kill.wrong.append(f"exit code {kill.exit_code}")
    if kill.mode != "torchrun" and kill.signal in SAVING and "Traceback" in output:
        kill.wrong.append("a traceback")
    after, begun, done = place.position(), BEGUN in output, re.findall(r"Epoch (\d+)/\d+: ", output)
    kill.position = "" if after is None else f"{after[0]}/{after[1]}"
    if before is not None and (after is None or after < before):
        kill.wrong.append(f"was at {before}, is at {after}")
    # The line of an epoch is written before its checkpoint: only who was asked to save has that one as well.
    least = int(done[-1]) - (kill.signal not in SAVING) if done else 0
    if (after or (0, 0))[0] < least:
        kill.wrong.append(f"{least} epochs were saved, is at {after}")
    if kill.signal in SAVING and begun and kill.exit_code and after is None:
        kill.wrong.append("nothing saved")
    if kill.wrong:
        kill.wrong.append(str(log))


def compare(place: Place, reference: Path) -> list[str]:
    """What differs at the end between a chain and the run nobody disturbed."""
    code = place.finish()
    wrong = [f"left behind: {left}"] if (left := place.left_behind()) else []
    if code != 0:
        return [*wrong, f"the last start ended with exit code {code}, see output_{place.starts:03d}.txt"]
    final = "checkpoint_final.pth"
    wrong += [f"{part} differs" for part in differing(place.run / final, reference / RUN / final)]
    summary = Path("validation") / "summary.json"
    if (place.run / summary).read_text() != (reference / RUN / summary).read_text():
        wrong.append("the validation differs")
    unexpected = [p.name for p in place.run.iterdir() if p.name.startswith(".") or p.name.endswith(".lock")]
    return wrong + ([f"files left: {unexpected}"] if unexpected else [])


class Drill:
    """A folder with references, chains and the list of what was done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder, self.seed = options, options.folder.resolve(), options.seed
        self.results = self.folder / "results.jsonl"
        self.done: list[dict[str, Any]] = []
        if self.results.exists():
            self.done = [json.loads(line) for line in self.results.read_text().splitlines()]

    def note(self, entries: list[dict[str, Any]]) -> None:
        """Write down a chain once it is complete, so that the next start repeats it or has it."""
        self.done += entries
        with self.results.open("a") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
        for entry in entries:
            print(json.dumps(entry), flush=True)

    def reference(self, mode: str) -> Path:
        """The folder of the undisturbed run with as many processes."""
        processes = 1 if mode in ("process", "group") else 2
        place = Place(
            self.folder / f"undisturbed_{processes}", "process" if processes == 1 else "several", self.options
        )
        if not (place.run / "validation" / "summary.json").exists():
            place.begin(None if processes == 1 else self.reference("process"))
            code = place.finish()
            assert code == 0, f"The undisturbed run in {place.folder} ended with exit code {code}."
        return place.folder

    def chain(self, name: str, mode: str, plan: list[tuple[str, str]]) -> None:
        """Kill one run as planned, finish it, compare."""
        if any(entry["chain"] == name for entry in self.done):
            return
        reference = self.reference(mode)
        chance = random.Random(f"{self.seed} {name}")
        place = Place(self.folder / name, mode, self.options)
        place.begin(None if plan[0][0] in PHASES[:2] else self.reference("process"))
        kills = []
        for phase, what in plan:
            kill = Kill(name, mode, phase, what)
            if not kill_once(kill, place, chance):
                if kill.wrong:
                    kills.append(kill)
                break
            kills.append(kill)
        wrong = compare(place, reference)
        self.note(
            [*map(asdict, kills), {"chain": name, "mode": mode, "end": True, "kills": len(kills), "wrong": wrong}]
        )
        if not wrong and not any(kill.wrong for kill in kills):
            shutil.rmtree(place.folder)

    def at_random(self, number: int) -> None:
        """Chains until there were so many kills."""
        index = 0
        while sum("signal" in entry for entry in self.done) < number:
            chance = random.Random(f"{self.seed} plan {index}")
            mode = ORDER[index % len(ORDER)]
            early = [p for p in PHASES[:2] if chance.random() < 0.35]
            late = [
                chance.choice(("training", "training", "writing"))
                for _ in range(chance.randint(6, 9) if mode in MODES[:2] else 3)
            ]
            end = ["validation"] * (chance.random() < 0.6)
            phases = [*early, *late, *end]
            self.chain(f"chain_{index:03d}", mode, [(phase, chance.choice(SIGNALS)) for phase in phases])
            index += 1

    def between_epochs(self, number: int) -> None:
        """Runs that get a signal at a place between two epochs."""
        for index in range(number):
            name = f"between_{index:03d}"
            if any(entry["chain"] == name for entry in self.done):
                continue
            chance = random.Random(f"{self.seed} {name}")
            what, where, epoch = chance.choice(SAVING), chance.choice(PLACES), chance.randrange(self.options.epochs - 1)
            place = Place(self.folder / name, "process", self.options)
            place.begin(self.reference("process"))
            kill = Kill(name, "process", where, what)
            process, log = place.start((what, where, epoch))
            kill.exit_code = wait_for_end(process)
            look(kill, place, log, getattr(signal, f"SIG{what}"), None)
            if kill.exit_code == 0:
                kill.wrong.append("ended by itself")
            wrong = compare(place, self.reference("process"))
            self.note([asdict(kill), {"chain": name, "mode": "process", "end": True, "kills": 1, "wrong": wrong}])
            if not wrong and not kill.wrong:
                shutil.rmtree(place.folder)

    def table(self) -> int:
        """Print what was found; the number of things that were wrong."""
        kills = [entry for entry in self.done if "signal" in entry]
        ends = [entry for entry in self.done if "end" in entry]
        counts = Counter((k["mode"], k["phase"], k["signal"]) for k in kills)
        print(f"\n{'mode':<10}{'phase':<22}{''.join(f'{s:>6}' for s in SIGNALS)}")
        for mode, phase in sorted({(m, p) for m, p, _ in counts}):
            print(f"{mode:<10}{phase:<22}{''.join(f'{counts[mode, phase, s]:>6}' for s in SIGNALS)}")
        bad_kills, bad_ends = [k for k in kills if k["wrong"]], [e for e in ends if e["wrong"]]
        for entry in (*bad_kills, *bad_ends):
            print(f"WRONG: {json.dumps(entry)}")
        print(
            f"{len(kills)} kills in {len(ends)} runs: {len(kills) - len(bad_kills)} kills lost nothing and left nothing behind, "
            f"{len(ends) - len(bad_ends)} runs ended bit by bit as the undisturbed one."
        )
        return len(bad_kills) + len(bad_ends)


PLACES = ("before the end", "before saving", "after saving", "after the end", "first line", "second line")


def run(ambush: tuple[str, str, int] | None, flags: list[str]) -> None:
    """Pre-train; with `ambush` (signal, place, epoch) send oneself a signal at a place between the epoch and the next."""
    from nnunet_ssl.cli.pretrain import main
    from nnunet_ssl.trainers.loop import epochs
    from nnunet_ssl.trainers.ssl_trainer import SSLTrainer

    if ambush is None:
        return main(flags)
    what, where, epoch = ambush

    def sending(function: Any, at: str, before: bool, shift: int = 0) -> Any:
        def wrapped(*args: Any) -> Any:
            now = where == at and args[0].current_epoch == epoch + shift
            if now and before:
                signal.raise_signal(getattr(signal, f"SIG{what}"))
            result = function(*args)
            if now and not before:
                signal.raise_signal(getattr(signal, f"SIG{what}"))
            return result

        return wrapped

    def after_end(*args: Any) -> None:
        end(*args)
        if where == "after the end" and args[0].current_epoch == epoch + 1:
            signal.raise_signal(getattr(signal, f"SIG{what}"))

    trainer: Any = SSLTrainer
    end = sending(trainer.on_epoch_end, "before the end", True)
    trainer.on_epoch_end = after_end
    epochs.save_unless_disk_is_full = sending(epochs.save_unless_disk_is_full, "before saving", True)
    epochs.save_unless_disk_is_full = sending(epochs.save_unless_disk_is_full, "after saving", False)
    trainer.on_epoch_start = sending(trainer.on_epoch_start, "first line", True, 1)
    trainer.on_train_epoch_start = sending(trainer.on_train_epoch_start, "second line", False, 1)
    main(flags)


def main() -> int:
    if sys.argv[1:2] == ["--victim"]:
        run((sys.argv[2], sys.argv[3], int(sys.argv[4])), sys.argv[5:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--between-epochs", type=int)
    parser.add_argument("--plan", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--forked", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.forked:
        from nnunet_ssl.cli import pretrain  # noqa: F401
        from nnunet_ssl.planners import prepare  # noqa: F401
    drill = Drill(args)
    if args.plan:
        for index, text in enumerate(args.plan):
            mode, _, kills = text.partition(":")
            plan = [tuple(kill.split("-")) for kill in kills.split(",")]
            drill.chain(f"planned_{index}", mode, plan)  # type: ignore[arg-type]
    elif args.between_epochs:
        drill.between_epochs(args.between_epochs)
    else:
        drill.at_random(args.kills)
    return min(drill.table(), 1)


if __name__ == "__main__":
    sys.exit(main())
