"""What signals mean to a training, once for all.

SIGINT (Ctrl-C), SIGTERM and SIGUSR1: save at once and end. SIGUSR2, or an empty file `FINISH_EPOCH` in the result folder: finish
the epoch with its validation, save and end. Either way the exit code is 128 + the signal's number, as in a shell (for the file,
SIGUSR2's). A second Ctrl-C ends at once, without saving.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from os.path import isfile, join
from types import FrameType
from typing import Any

from nnunet_ssl.signals import AFTER_EPOCH, SAME_TOUCH, SIGNALS

FINISH_EPOCH = "FINISH_EPOCH"  # file in the result folder


def leave_with(number: int) -> SystemExit:
    """What to raise after a signal was honoured."""
    return SystemExit(128 + number)


class Interruption:
    """Remembers what somebody asked the process to do; the trainer looks between two iterations.

    `requested`: save at once. `finishing`: end after the epoch.
    """

    def __init__(self) -> None:
        self.finishing: signal.Signals | None = None
        self.loud = True  # whether to answer Ctrl-C on the terminal; of several processes, one does
        self._requested: signal.Signals | None = None
        self._process = 0
        self._before: dict[int, Any] = {}
        self._touched = 0.0  # when the first Ctrl-C came, by the monotonic clock
        # Who was started by torchrun belongs to its agent. Of SIGUSR1 and SIGKILL the agent dies without a word to anyone.
        self._agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    @property
    def requested(self) -> signal.Signals | None:
        """The signal after which to save at once and end."""
        if self._requested is None and self._agent is not None and os.getppid() != self._agent:
            self._requested = signal.SIGTERM
        return self._requested

    def listen(self) -> None:
        """Install the handlers; outside the main thread, where Python allows none, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._process = os.getpid()
        for number in SIGNALS:
            there = signal.getsignal(number)
            if there != self._remember:
                self._before.setdefault(number, there)
                signal.signal(number, self._remember)

    def insist(self) -> None:
        """Install the handlers again, where somebody else has put theirs since `listen`."""
        if self._before:
            self.listen()

    def ignore(self) -> None:
        """Put back the handlers that were there before, where ours are still in place."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._remember:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked child has inherited the handler. It must die of the signal: pools wait for that.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number in AFTER_EPOCH:
            self.finishing = signal.Signals(number)
            return
        if number == signal.SIGINT and self._touched and time.monotonic() - self._touched > SAME_TOUCH:
            self._say("ended at once, nothing was saved since the last checkpoint.")
            os._exit(128 + number)
        self._requested = self._requested or signal.Signals(number)
        if number == signal.SIGINT and not self._touched:
            self._touched = time.monotonic()
            self._say("saving after this iteration. Ctrl-C again ends at once, without saving.")

    def _say(self, what: str) -> None:
        if self.loud:
            with suppress(OSError):
                os.write(2, f"\nSIGINT: {what}\n".encode())  # print may be what was interrupted


def asked_to_finish(folder: str) -> bool:
    """Whether somebody put a file `FINISH_EPOCH` into a result folder."""
    return isfile(join(folder, FINISH_EPOCH))


def forget_to_finish(folder: str) -> None:
    """Take the file away: it was honoured."""
    with suppress(FileNotFoundError):
        os.remove(join(folder, FINISH_EPOCH))
