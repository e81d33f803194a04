"""The whole of nnunet_ssl in a few minutes, on made-up data and without a GPU.

    python -m nnunet_ssl.demo.run --output demo

Pre-trains on volumes without labels, fine-tunes on a few labelled ones, trains the twin from scratch, predicts, scores
and writes a page. Everything is done by the commands a user types, each in a process of its own.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path

from nnunet_ssl.demo.data import SCANS
from nnunet_ssl.demo.job import COMPARISON, FULL, PREPROCESSED, QUICK, RAW, RESULTS, demo_steps
from nnunet_ssl.demo.report import PICTURES, REPORT, write_report
from nnunet_ssl.demo.steps import LOGS, find_program, run_steps
from nnunet_ssl.errors import DemoError
from nnunet_ssl.files.atomic import write_text

MARKER = ".nnunet_ssl_demo"
OWN = (RAW, PREPROCESSED, RESULTS, COMPARISON, SCANS, LOGS, PICTURES, REPORT)


def prepare_folder(folder: Path) -> None:
    """Make the demo's folder, or empty one that an earlier demo made of what that demo wrote.

    Raises DemoError for a folder with content but without the demo's marker file: it belongs to somebody.
    """
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise DemoError(f"{folder} is a file. Give a folder: --output demo")
    if folder.is_dir() and any(folder.iterdir()) and not marker.is_file():
        raise DemoError(
            f"{folder} holds files that no earlier demo made, so it is left alone. Give a new folder: --output demo"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text("Made by python -m nnunet_ssl.demo.run, which replaces what lies here.\n", marker)
    for name in OWN:
        entry = folder / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def environment(folder: Path) -> dict[str, str]:
    """Variables of the commands: nnU-Net's three folders within the demo's, and as many workers as two cores feed."""
    return {
        "nnUNet_raw": str(folder / RAW),
        "nnUNet_preprocessed": str(folder / PREPROCESSED),
        "nnUNet_results": str(folder / RESULTS),
        "nnUNet_n_proc_DA": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait must not keep the loader from its core
        "nnUNet_def_n_proc": "2",
        "PYTHONUNBUFFERED": "1",
    }


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns 0, or 1 after printing why it stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m nnunet_ssl.demo.run",
        description="Pre-train, fine-tune, compare with training from scratch, and write a page about it; on made-up "
        "data, in less than ten minutes on two CPU cores.",
    )
    parser.add_argument("--output", default="demo", metavar="FOLDER", help="new folder for everything (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="of data, masks and network weights (default: 0)")
    parser.add_argument("--quick", action="store_true", help="check that every step works; learns nothing")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda", "mps"), help="default: cpu")
    args = parser.parse_args(argv)
    folder = Path(args.output).expanduser().resolve()
    scale = QUICK if args.quick else FULL
    steps = demo_steps(scale, args.seed, args.device)
    start = time.monotonic()
    try:
        for program in {step.argv[0] for step in steps}:
            find_program(program)
        prepare_folder(folder)
        variables = environment(folder)
        for variable, value in variables.items():
            print(f"export {variable}={shlex.quote(value)}")
        print(f"cd {shlex.quote(str(folder))}\n")
        seconds = run_steps(steps, folder, variables)
        page = write_report(folder, scale, args.seed, args.device, steps, variables, seconds, time.monotonic() - start)
    except DemoError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped. What was done so far lies in {folder}.", file=sys.stderr)
        return 130
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
