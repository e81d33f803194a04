"""Many processes share the cases of a folder while some are killed at random: each case once, nothing left behind.

    python tests/drills/claims.py [--cases 400] [--processes 6] [--kills 100] [--locks kernel|heartbeat] [--seed 0]

A case is a file that takes some milliseconds to make. Whoever works on one says so in a file of its own; if the case is in
the hands of another living process at that moment, both are counted as "two at once". A killed process is replaced.
Prints the counts and exits with 1 unless they are as they should be.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from nnunet_ssl.files.mounts import VARIABLE
from nnunet_ssl.files.participants import CLAIMS, PRESENT, WORK, Participant


def main(arguments: list[str] | None = None) -> int:
    """Run the drill, or one worker of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--locks", choices=["kernel", "heartbeat"], default="kernel")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(Path(options.worker), options.cases)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return drill(Path(folder), options)


def work(folder: Path, number: int) -> None:
    """Make the cases that nobody has made, and wait for those that others make."""
    with Participant(str(folder / "state")) as participant:
        todo = [f"case{i:04d}" for i in range(number)]
        random.shuffle(todo)
        participant.forget_claims(but={case for case in todo if not (folder / "made" / case).exists()})
        while todo := [case for case in todo if not (folder / "made" / case).exists()]:
            for case in todo:
                if participant.claim(case) is None:
                    continue
                if not (folder / "made" / case).exists():
                    make(folder, case, Path(participant.work))
                participant.release(case)
            time.sleep(0.01)


def make(folder: Path, case: str, unfinished: Path) -> None:
    """Make one case, slowly; notes in `twice` that another living process is at it, or that it was made before."""
    sign = folder / "inside" / case
    with suppress(FileNotFoundError):
        owner = sign.read_text()
        if owner and Path(f"/proc/{owner}").exists() and " Z " not in Path(f"/proc/{owner}/stat").read_text():
            (folder / "twice" / f"{case}-{os.getpid()}").touch()
    sign.write_text(str(os.getpid()))
    with open(unfinished / case, "w") as file:
        for _ in range(5):
            file.write(f"{case}\n")
            file.flush()
            time.sleep(random.uniform(0, 0.004))
    if (folder / "made" / case).exists():
        (folder / "twice" / f"{case}-{os.getpid()}").touch()
    sign.unlink(missing_ok=True)
    os.replace(unfinished / case, folder / "made" / case)


def drill(folder: Path, options: argparse.Namespace) -> int:
    """Start the workers, kill some, count."""
    chance = random.Random(options.seed)
    for name in ("made", "inside", "twice"):
        (folder / name).mkdir()
    command = [sys.executable, __file__, "--worker", str(folder), "--cases", str(options.cases)]
    environment = {**os.environ, VARIABLE: options.locks}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment)

    workers, kills, failed = [start() for _ in range(options.processes)], 0, 0
    while any(worker.poll() is None for worker in workers):
        time.sleep(chance.uniform(0.01, 0.1))
        living = [worker for worker in workers if worker.poll() is None]
        if kills < options.kills and living:
            victim = chance.choice(living)
            victim.kill()
            kills += victim.wait() == -9
            workers.append(start())
    failed = sum(worker.returncode not in (0, -9) for worker in workers)

    subprocess.run(command, env=environment, check=True)  # one more, which cleans up and finds nothing to do
    made = [p for p in (folder / "made").iterdir() if p.read_text() == f"{p.name}\n" * 5]
    twice = len(list((folder / "twice").iterdir()))
    remains = [p for kind in (WORK, PRESENT) for p in (folder / "state" / kind).iterdir()]
    remains += [p for p in (folder / "state" / CLAIMS).iterdir() if options.locks == "kernel"]
    print(
        f"{options.locks} locks, {options.processes} processes at a time, seed {options.seed}: {kills} killed, {failed} "
        f"failed; {len(made)} of {options.cases} cases made whole, {twice} by two at once, {len(remains)} files left behind."
    )
    return int(failed > 0 or len(made) != options.cases or twice > 0 or len(remains) > 0)


if __name__ == "__main__":
    sys.exit(main())
