"""Errors and signals as a user wants to read them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

from nnunet_ssl.quoting import printable, printing_what_is_printable
from nnunet_ssl.signals import AT_ONCE, SAME_TOUCH

KEPT = "What was done is kept; the same command goes on from there."


class Stopped(BaseException):
    """A signal asked the command to stop. Whatever unfinished files it has are removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def raised_by_us(traceback: TracebackType | None) -> bool:
    """Whether the innermost frame of a traceback is code of this package."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and str(traceback.tb_frame.f_globals.get("__name__")).startswith("nnunet_ssl")


@contextmanager
def one_line_errors(command: str, kept: str = KEPT) -> Iterator[None]:
    """Print an error this package raised on purpose as `command: message` and exit with 1; print what is printable alone.

    Errors from elsewhere keep their traceback, and so does everything when NNUNET_SSL_TRACEBACK is set. SIGINT (Ctrl-C), SIGTERM
    and SIGUSR1 end in one line that says what is `kept` and how to go on, and with exit code 128 + the signal's number.
    """
    try:
        with printing_what_is_printable(), stopping_on_signals():
            try:
                yield
            except Exception as error:
                if os.environ.get("NNUNET_SSL_TRACEBACK") or not raised_by_us(error.__traceback__):
                    raise
                print(printable(f"{command}: {error}"), file=sys.stderr)
                sys.exit(1)
    except (Stopped, KeyboardInterrupt) as stopped:
        number = stopped.number if isinstance(stopped, Stopped) else signal.SIGINT
        print(f"\n{command}: stopped by {signal.Signals(number).name}. {kept}", file=sys.stderr)
        sys.exit(128 + number)


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """In the block, a signal raises Stopped where the program is; a second Ctrl-C ends the process at once.

    A training puts its own handlers in their place, see `trainers/interruption.py`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process, since = os.getpid(), 0.0

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal since
        if os.getpid() != process:  # a forked child has inherited the handler and must die of the signal
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not since:
            since = time.monotonic()
            raise Stopped(number)
        elif number == signal.SIGINT and time.monotonic() - since > SAME_TOUCH:
            os._exit(128 + number)

    before = {number: signal.signal(number, stop) for number in AT_ONCE}
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(TypeError):  # None: a handler that Python did not install
                signal.signal(number, handler)
