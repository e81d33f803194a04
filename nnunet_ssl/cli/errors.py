"""Errors and signals as a user wants to read them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nnunet_ssl.messages import one_line
from nnunet_ssl.quoting import printing_what_is_printable
from nnunet_ssl.signals import Stopped, stopping_on_signals

KEPT = "What was done is kept; the same command goes on from there."


@contextmanager
def one_line_errors(command: str, kept: str = KEPT) -> Iterator[None]:
    """Print an error that a person can do something about as `command: message` and exit with 1; print what is printable alone.

    Errors from elsewhere keep their traceback, and so does everything when NNUNET_SSL_TRACEBACK is set. SIGINT (Ctrl-C), SIGTERM,
    SIGUSR1 and SIGUSR2 end in one line that says what is `kept` and how to go on, and with exit code 128 + the signal's number.
    """
    try:
        with printing_what_is_printable(), stopping_on_signals():
            try:
                yield
            except Exception as error:
                message = one_line(error)
                if message is None:
                    raise
                print(f"{command}: {message}", file=sys.stderr)
                sys.exit(1)
    except (Stopped, KeyboardInterrupt) as stopped:
        number = stopped.number if isinstance(stopped, Stopped) else signal.SIGINT
        print(f"\n{command}: stopped by {signal.Signals(number).name}. {kept}", file=sys.stderr)
        sys.exit(128 + number)
