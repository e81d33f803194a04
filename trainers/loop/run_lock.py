"""One run per result folder: two would overwrite each other's checkpoints, plans and logs."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from os.path import abspath, basename, dirname, isdir, join
from typing import TYPE_CHECKING

from nnunet_ssl.errors import FolderInUse
from nnunet_ssl.files.heartbeat import BEAT, SILENCE
from nnunet_ssl.files.locks import Lock, Owner
from nnunet_ssl.files.owner import place
from nnunet_ssl.files.unwritable import cannot_write
from nnunet_ssl.integration.versions import is_first

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

FILE = "running.lock"
PATIENCE = SILENCE + BEAT  # seconds after which a holder on another machine has shown that it lives
POLL = 1.0

_held: dict[str, tuple[Lock, int]] = {}  # of this process, with how often it holds them


@contextmanager
def alone_in(folder: str, doing: str) -> Iterator[None]:
    """Hold the lock of a result folder; whoever holds it may do so again. Its owner's death ends it.

    doing: what others are told. Where the holder runs on another machine, or where locks are heart-beats, it may be dead all the
    same, as after SLURM has requeued a job: then this waits until that shows. Raises FolderInUse where it lives, CannotWrite
    where the folder cannot be written.
    """
    path = join(abspath(folder), FILE)
    made, done = [f for f in (dirname(path), dirname(dirname(path))) if not isdir(f)], False
    lock, count = _held.get(path) or (_acquire(path, doing), 0)
    _held[path] = lock, count + 1
    try:
        yield
        done = True
    finally:
        lock, count = _held.pop(path)
        if count > 1:
            _held[path] = lock, count - 1
        else:
            lock.release()
            for empty in made * (not done):  # what ended before anything was written leaves no folder
                with suppress(OSError):
                    os.rmdir(empty)


def alone_in_folder_of(trainer: nnUNetTrainer) -> AbstractContextManager[None]:
    """The lock of a trainer's result folder, held by its first process; raises as `alone_in`."""
    folder = trainer.output_folder
    return alone_in(folder, doing(folder)) if is_first() else nullcontext()


def _acquire(path: str, doing: str) -> Lock:
    lock = Lock(path, doing)
    end = time.monotonic() + PATIENCE
    told = False
    while not _try(lock):
        owner = lock.owner()
        here = owner is not None and owner.place == place() and not isdir(path)
        if owner is not None and (here or time.monotonic() > end):
            raise FolderInUse(_refusal(dirname(path), owner))
        if owner is not None and not told:
            told = True
            print(f"{dirname(path)} is held by {owner}. Waiting up to {PATIENCE:.0f} s for a sign of life.", flush=True)
        time.sleep(POLL if told else 0.05)
    return lock


def _try(lock: Lock) -> bool:
    try:
        os.makedirs(dirname(lock.path), exist_ok=True)
        with suppress(FileNotFoundError):  # another one has left, and taken its empty folder away
            return lock.try_acquire()
        return False
    except OSError as error:
        raise cannot_write(lock.path, error) from error


def _refusal(folder: str, owner: Owner) -> str:
    stop = (
        f"kill {owner.pid} (on {owner.host})" if owner.slurm_job is None else f"scancel {shlex.quote(owner.slurm_job)}"
    )
    return (
        f"{folder} is in use by {owner}. Two runs in one folder would overwrite each other. Wait until it has ended, stop it "
        f"with {stop}, which saves, or give this run a folder of its own: nnUNetv2_pretrain ... --run-name NAME."
    )


def doing(folder: str) -> str:
    """What a run in the fold's folder `folder` is doing, for people: "training SSLMAETrainer__PLANS__3d_fullres"."""
    return f"training {basename(dirname(abspath(folder)))}"
