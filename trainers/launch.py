"""Start or continue a pre-training: one process, several on this machine, or those torchrun started."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from os.path import basename, dirname, getmtime, getsize, isfile, join
from types import FrameType
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.run.run_training import find_free_network_port
from torch import distributed as dist
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, ProcessRaisedException, spawn

from nnunet_ssl.checkpoints.read import read_checkpoint, read_latest
from nnunet_ssl.corpus.datasets import load_configuration, require_own_plans
from nnunet_ssl.errors import CheckpointError, CorpusError, MachineError, TrainingError
from nnunet_ssl.files.entering import read_json
from nnunet_ssl.integration.pretrained_weights import load_into
from nnunet_ssl.messages import one_line
from nnunet_ssl.planners.sharing.finished import plan_settings
from nnunet_ssl.signals import AT_ONCE, SAME_TOUCH, SIGNALS, children_hold_back
from nnunet_ssl.trainers.device.devices import require_device, use_threads
from nnunet_ssl.trainers.distributed.processes import patient_group, wait_for_all
from nnunet_ssl.trainers.loop.early_stop import stalled
from nnunet_ssl.trainers.loop.interruption import leave_with
from nnunet_ssl.trainers.loop.judging import COLLAPSED
from nnunet_ssl.trainers.loop.state import RESUME_ORDER, existing_checkpoint
from nnunet_ssl.trainers.loop.validation import summary_file
from nnunet_ssl.trainers.pretraining import trainer_class

TOLD = "nnunet_ssl says: "  # before what a process tells its parent of an error that a user can mend


@dataclass(frozen=True)
class Run:
    """Everything a process needs to know to take part in a pre-training."""

    plans: dict[str, Any]
    configuration: str
    fold: int | str
    dataset_json: dict[str, Any]
    method: str
    device: str
    pretrained_weights: str | None = None
    stem: str | None = None  # of pretrained_weights that have several


def output_folder(method: str, plans: Mapping[str, Any], configuration: str, fold: int | str) -> str:
    """nnU-Net's result folder for this run."""
    run = f"{trainer_class(method).__name__}__{plans['plans_name']}__{configuration}"
    return join(nnUNet_results, plans["dataset_name"], run, f"fold_{fold}")


def plans_of_run(folder: str, plans: dict[str, Any]) -> dict[str, Any]:
    """The plans a run in `folder` was started with, settings included; `plans` when it has not been started.

    Raises CorpusError when the run is another data set's, as after a copy, and when the images are made otherwise now.
    """
    stored = join(folder, os.pardir, "plans.json")
    if not existing_checkpoint(folder) or not isfile(stored):
        return deepcopy(plans)
    own = require_own_plans(stored_plans(stored, folder), stored, plans["dataset_name"])
    configuration = basename(dirname(folder)).rpartition("__")[2]
    before, now = (plan_settings(p, load_configuration(p, configuration)) for p in (own, plans))
    changed = [key for key in now if now[key] != before.get(key)]
    if changed:
        raise CorpusError(
            f"The run in {folder} was trained on images that were made with other settings ({', '.join(changed)}); the plans "
            f"{plans['plans_name']} say something else now. Move that folder away to start anew, or undo the change."
        )
    return own


def stored_plans(file: str, folder: str) -> dict[str, Any]:
    """The plans in `file`, or, where a kill left half of it, those in a checkpoint of `folder`."""
    try:
        return read_json(file)
    except ValueError:
        checkpoint, path, _ = read_latest(folder, RESUME_ORDER)
        print(f"WARNING: {file} is damaged; using the plans that {path} holds. The training writes it anew.")
        return deepcopy(checkpoint["init_args"]["plans"])


def run_process(run: Run) -> str:
    """Train in this process until the end; returns the final checkpoint's path."""
    device = torch.device(run.device)
    use_threads(device)
    folder = output_folder(run.method, run.plans, run.configuration, run.fold)
    checkpoint = existing_checkpoint(folder)
    plans = {**deepcopy(run.plans), "continue_training": checkpoint is not None}
    trainer = trainer_class(run.method)(plans, run.configuration, run.fold, run.dataset_json, device)  # type: ignore[arg-type]
    if checkpoint is not None:
        trainer.load_checkpoint(checkpoint)
    elif run.pretrained_weights is not None:
        trainer.initialize()
        trainer.print_to_log_file(
            load_into(trainer.network, run.pretrained_weights, run.stem).table(), add_timestamp=False
        )
    trainer.run_training()
    trainer.perform_actual_validation()
    wait_for_all(patient_group())  # a trainer of another package may validate in one process alone
    return join(folder, "checkpoint_final.pth")


def is_finished(folder: str, num_epochs: int | None, early_stop: int | None = None) -> bool:
    """Whether the run in `folder` has reached `num_epochs` epochs, or its own end if None, and was validated then.

    early_stop: epochs without a lower validation loss after which it is at its end as well.
    """
    final = join(folder, "checkpoint_final.pth")
    if not isfile(final) or not isfile(summary_file(folder)):
        return False
    try:
        checkpoint = read_checkpoint(final)
    except CheckpointError:
        return False  # a damaged file is the end of nothing
    if num_epochs is None or checkpoint["current_epoch"] >= num_epochs:
        return True
    return stalled(checkpoint["logging"].get("val_losses", ()), early_stop)


def join_torchrun(device: str) -> bool:
    """Join the process group when torchrun started this process."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return False
    require_device(torch.device(device))
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    return True


def launch(run: Run, num_processes: int) -> None:
    """Train in this process, or in `num_processes` of this machine."""
    require_device(torch.device(run.device))
    if num_processes <= 1:
        run_process(run)
        return
    if run.device == "cuda" and num_processes > torch.cuda.device_count():
        raise MachineError(
            f"{num_processes} GPUs were asked for, this machine has {torch.cuda.device_count()}. "
            f"Use --num-gpus {torch.cuda.device_count()}."
        )
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(find_free_network_port()))
    with children_hold_back():
        context = spawn(run_spawned, args=(run, num_processes), nprocs=num_processes, join=False)
    with pass_signals_on(context) as received:
        wait_for(context, received)


def run_spawned(rank: int, run: Run, num_processes: int) -> None:
    """What each of several processes on this machine does."""
    end_quietly_on_signals()
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(num_processes))
    if run.device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if run.device == "cuda" else "gloo", rank=rank, world_size=num_processes)
    with telling_the_parent():
        run_process(run)
    # Only after success of all: leaving the group first would make the others fail before this process has told its error.
    dist.destroy_process_group()


@contextmanager
def telling_the_parent() -> Iterator[None]:
    """In a process of several: what a user can mend is marked as such, because torch hands the parent a text, not the error."""
    try:
        yield
    except Exception as error:
        message = one_line(error)
        if message is None:
            raise
        raise TrainingError(TOLD + message) from None


def end_quietly_on_signals() -> None:
    """In a process that has just begun, before its trainer listens: nothing is to be saved yet, so signals end it."""
    for number in SIGNALS:
        signal.signal(number, lambda number, _: os._exit(128 + number))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the parent held them back, see `launch`


@contextmanager
def pass_signals_on(context: ProcessContext) -> Iterator[list[int]]:
    """While the block runs, hand signals on to the processes of `context`, which save and leave; yields the signals that came.

    A process group's signal reaches the processes twice then. So SIGINT is handed on as SIGTERM: of two SIGINT they would not
    save. The second Ctrl-C ends all of them here.
    """
    received: list[int] = []
    touched = 0.0

    def hand_on(number: int, _frame: FrameType | None) -> None:
        nonlocal touched
        again = number == signal.SIGINT and touched and time.monotonic() - touched > SAME_TOUCH
        received.append(number)
        if number == signal.SIGINT:
            touched = touched or time.monotonic()
        for process in context.pids():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL if again else signal.SIGTERM if number == signal.SIGINT else number)
        if again:
            os._exit(128 + number)

    before = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for(context: ProcessContext, received: Sequence[int] = ()) -> None:
    """Wait for spawned processes; raises what the one that failed first has told, as TrainingError, or its traceback.

    SystemExit when they were asked to stop and have saved, with 128 + the first of the signals `received` here.
    """
    try:
        while not context.join():
            pass
    except ProcessRaisedException as error:
        # The others fail in its wake, because they lose their connection to it: its file is the oldest.
        written = [f for f in context.error_files if isfile(f) and getsize(f)]
        first = min(written, key=getmtime)
        with open(first, "rb") as file:
            traceback = pickle.load(file)  # a text from our own child, through torch's own file
        number, (_, told, message) = context.error_files.index(first), traceback.partition(TOLD)
        if told:
            raise TrainingError(f"Process {number}: {message.strip()}") from None
        raise RuntimeError(f"Process {number} failed:\n{traceback}") from error
    except ProcessExitedException as error:
        if error.exit_code == COLLAPSED:
            raise SystemExit(COLLAPSED) from None
        if error.exit_code in {128 + number for number in SIGNALS}:
            raise leave_with(next((n for n in received if n in AT_ONCE), error.exit_code - 128)) from None
        how = f"was killed by {error.signal_name}" if error.signal_name else f"ended with exit code {error.exit_code}"
        raise MachineError(
            f"Process {error.error_index} {how}, so the others were ended. SIGKILL is often the system's answer to a lack "
            "of memory: fewer nnUNet_n_proc_DA workers need less. The same command continues from the last checkpoint."
        ) from error
