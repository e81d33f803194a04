"""Preprocess one corpus on all workers of a Dask cluster: the same command on each, they share the images among themselves.

    python examples/cluster/preprocess_dask.py --scheduler tcp://head:8786 --workers 4 745 --backbone resenc_l -np 16
    python examples/cluster/preprocess_dask.py --workers 2 4 --backbone resenc_tiny -np 4

All other arguments go to `nnUNetv2_pretrain ... --preprocess-only`, which each of the present workers starts once. They
need nnunet_ssl in their Python, and see nnU-Net's three folders under the paths that are set here. Start it again at any
time: what is finished stays. Interrupting it does not end commands that already run on other machines.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def preprocess(arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """On a worker: exit status of the command and what it said at last; ends when the whole corpus is done."""
    command = [sys.executable, "-m", "nnunet_ssl.pretrain", *arguments, "--preprocess-only"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    return done.returncode, "\n".join((done.stderr if done.returncode else done.stdout).splitlines()[-20:])


def main() -> int:
    """Connect, submit one call per worker, print what each ended with; 1 if any failed."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--scheduler ADDRESS] [--workers N] DATASET [DATASET ...] [flags of nnUNetv2_pretrain]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="e.g. tcp://head:8786 (default: this machine)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="start or wait for N (default: 1)")
    args, arguments = parser.parse_known_args()
    if not arguments:
        parser.error("no data set given. Type for example: preprocess_dask.py 745 --backbone resenc_l -np 8")
    if missing := [name for name in FOLDERS if name not in os.environ]:
        parser.error(f"{', '.join(missing)} not set. Set nnU-Net's folders, on storage that all workers see.")
    try:
        from distributed import Client, LocalCluster, as_completed
    except ImportError:
        parser.exit(1, "dask.distributed is not installed. Type: pip install 'nnunet_ssl[dask]'\n")

    environment = {name: os.environ[name] for name in FOLDERS} | {"OMP_NUM_THREADS": "1"}  # -np says how many processes
    cluster = args.scheduler or LocalCluster(args.workers, threads_per_worker=1, dashboard_address=None)
    try:
        client = Client(cluster)
        client.wait_for_workers(args.workers, timeout=60)
    except (OSError, asyncio.TimeoutError) as error:
        parser.exit(1, f"{args.scheduler or 'This machine'} has no {args.workers} workers: {error}\n")
    with client:
        failed = 0
        # Not tied to a worker for good: if one is lost, another takes up its call.
        calls = {
            client.submit(
                preprocess, arguments, environment, workers=[name], allow_other_workers=True, pure=False
            ): name
            for name in client.nthreads()
        }
        print(f"{len(calls)} workers preprocess {' '.join(arguments)}", flush=True)
        for call in as_completed(calls):
            if call.status == "finished":
                status, said = call.result()
            else:
                status, said = 1, repr(call.exception()) if call.status == "error" else call.status
            failed += status != 0
            print(f"{calls[call]}: {'done' if status == 0 else f'failed with {status}'}\n{said}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
