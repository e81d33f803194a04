"""SIGTERM and SIGUSR1: save, say so, and leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interruption:
    """Remembers that somebody asked the process to stop; the trainer looks between two iterations."""

    SIGNALS = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGUSR1") if hasattr(signal, n))

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None

    def listen(self) -> None:
        """Install the handlers; outside the main thread, where Python allows none, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self.SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.requested = signal.Signals(number)
