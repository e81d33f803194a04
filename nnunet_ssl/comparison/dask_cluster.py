"""A comparison on all workers of a Dask cluster: each joins in by the same command, and they share the cells among themselves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from nnunet_ssl.errors import MachineError

LOCAL = "local"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
LAST_LINES = 20


def join_in(arguments: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    """On a worker: exit code of the command and what it said at last."""
    argv = [sys.executable, "-m", "nnunet_ssl.run", "nnUNetv2_pretrain_compare", *arguments]
    done = subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    return done.returncode, "\n".join(said.splitlines()[-LAST_LINES:])


def work_on_workers(address: str, arguments: Sequence[str]) -> int:
    """Have every worker that is there now take part; returns the highest exit code.

    address: the scheduler's, or "local" for two workers of this machine. They need nnunet_ssl in their Python, and see nnU-Net's
    folders and the comparison's under the paths they have here. Raises MachineError without Dask or workers.
    """
    try:
        dask: Any = import_module("distributed")
    except ImportError as error:
        raise MachineError("dask.distributed is not installed. Type: pip install 'nnunet_ssl[dask]'") from error
    environment = {name: os.environ[name] for name in FOLDERS if name in os.environ}
    cluster: Any = address
    if address == LOCAL:
        cluster = dask.LocalCluster(2, threads_per_worker=1, dashboard_address=None)
    try:
        client = dask.Client(cluster)
        client.wait_for_workers(1, timeout=60)
    except (OSError, asyncio.TimeoutError) as error:
        raise MachineError(f"There is no Dask cluster with workers at {address}: {error}") from error
    highest = 0
    with client:
        # Not tied to a worker for good: if one is lost, another takes up its call.
        calls = {
            client.submit(
                join_in, list(arguments), environment, workers=[name], allow_other_workers=True, pure=False
            ): name
            for name in client.nthreads()
        }
        print(f"{len(calls)} workers take part.", flush=True)
        for call in dask.as_completed(calls):
            finished = call.status == "finished"
            code, said = (
                call.result() if finished else (1, str(call.exception() if call.status == "error" else call.status))
            )
            highest = max(highest, code)
            print(f"{calls[call]}: {'done' if code == 0 else f'ended with exit code {code}'}\n{said}", flush=True)
    if address == LOCAL:
        cluster.close()
    return highest
