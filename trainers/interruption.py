"""SIGTERM and SIGUSR1: save, say so, and leave."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """Remembers that somebody asked the process to stop; the trainer looks between two iterations."""

    SIGNALS = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGUSR1") if hasattr(signal, n))

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._process = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Install the handlers; outside the main thread, where Python allows none, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._process = os.getpid()
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._remember)

    def ignore(self) -> None:
        """Put back the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked child has inherited the handler. It must die of the signal: pools wait for that.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.requested = signal.Signals(number)
