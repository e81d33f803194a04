"""Signals, and the child processes that they reach as well.

What signals mean to a training is said in `trainers/loop/interruption.py`; other commands stop where they are, see `Stopped`.
Children that read or preprocess for a parent are left alone by them until it has saved, and end with it. `timeout`,
`kill -- -GROUP`, `scancel` and Ctrl-C reach a whole process group: a child that died of it would take the parent's data away
before the parent has saved, and a child that waits for a parent that is gone would wait for ever.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType

AT_ONCE = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, n))
AFTER_EPOCH = tuple(getattr(signal, n) for n in ("SIGUSR2",) if hasattr(signal, n))
SIGNALS = AT_ONCE + AFTER_EPOCH
SAME_TOUCH = 0.5  # seconds; `timeout` sends its signal to the process, and at once again to its group
LOOK = 1.0  # seconds between two looks at whether the parent lives

_guarding: int | None = None  # the process whose forks are guarded
_stopping: tuple[int, ...] = ()  # signals that raise Stopped now
_mask = threading.local()  # of the thread that forks
_obeying = False


class Stopped(BaseException):
    """A signal asked the command to stop. Whatever unfinished files it has are removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name} received")
        self.number = number


@contextmanager
def stopping_on_signals(numbers: Sequence[int] = SIGNALS) -> Iterator[None]:
    """In the block, one of these signals raises Stopped where the program is; a second Ctrl-C ends the process at once.

    A training puts its own handlers in their place, see `trainers/loop/interruption.py`. Children that somebody's code forks in
    the block die of these signals as if there were no handler: pools end their workers with SIGTERM and wait for them.
    """
    global _stopping
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    since = 0.0

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal since
        if not since:
            since = time.monotonic()
            raise Stopped(number)
        elif number == signal.SIGINT and time.monotonic() - since > SAME_TOUCH:
            os._exit(128 + number)

    before = {number: signal.signal(number, stop) for number in numbers}
    outside, _stopping = _stopping, tuple(numbers)
    try:
        yield
    finally:
        _stopping = outside
        for number, handler in before.items():
            with suppress(TypeError):  # None: a handler that Python did not install
                signal.signal(number, handler)


@contextmanager
def children_hold_back() -> Iterator[None]:
    """Children that begin in the block hold signals back until they say otherwise; so none is lost while they begin."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        start_tracker()
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_tracker() -> None:
    """Start multiprocessing's process for what is to be cleaned up, deaf for what would end it in the middle of that.

    It ignores SIGINT and SIGTERM, but died of SIGUSR1 to the group; its successor complained about all it did not know.
    """
    if hasattr(signal, "pthread_sigmask"):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        resource_tracker.ensure_running()  # which lets SIGINT and SIGTERM through again
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def guarded_forks() -> Iterator[None]:
    """Every child that is forked in the block obeys its parent alone, as `obey` says."""
    global _guarding
    before, _guarding = _guarding, os.getpid()
    try:
        with children_hold_back():
            yield
    finally:
        _guarding = before


def obey(parent: int) -> None:
    """Let signals pass by, except SIGTERM of the process `parent`, and end when that process is gone.

    To be called in a child. A thread of its own watches: the child may be waiting in somebody else's code.
    """
    global _obeying
    if _obeying:
        return
    _obeying = True
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    waits = hasattr(signal, "sigtimedwait")
    while os.getppid() == parent:
        if not waits:  # macOS and Windows
            time.sleep(LOOK)
            continue
        arrived = signal.sigtimedwait(SIGNALS, LOOK)
        # multiprocessing ends its children with SIGTERM, and waits for them.
        if arrived is not None and arrived.si_signo == signal.SIGTERM and arrived.si_pid == parent:
            break
    os._exit(0)


def _before_fork() -> None:
    """Hold back what would reach a child while it begins: Python forgets what arrived before it knows that it is a child."""
    if _stopping and hasattr(signal, "pthread_sigmask"):
        _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, _stopping)


def _after_fork_in_parent() -> None:
    before = vars(_mask).pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork_in_child() -> None:
    global _guarding, _stopping
    numbers, _stopping = _stopping, ()
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    if _guarding is not None:
        parent, _guarding = _guarding, None
        obey(parent)
    else:
        _after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
