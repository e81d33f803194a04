"""Errors and signals as a user wants to read them."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from nnunet_ssl.messages import one_line_of_ours
from nnunet_ssl.quoting import printable, printing_what_is_printable
from nnunet_ssl.signals import Stopped, stopping_on_signals

REPORT = (
    "This is a bug, not a mistake of yours. Please report it to the nnunet_ssl developers: send the command, all lines above, "
    "and what `nnunet-ssl doctor` prints."
)
KEPT = "What was done is kept; the same command goes on from there."


@contextmanager
def one_line_errors(command: str, kept: str = KEPT) -> Iterator[None]:
    """Print an error that a person can do something about as `command: message` and exit with 1; print what is printable alone.

    Any other error is a mistake of ours: its traceback is printed, and where to report it. With NNUNET_SSL_TRACEBACK set, every
    error goes on as it is. SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and SIGUSR2 end in one line that says what is `kept` and how to go
    on, and with exit code 128 + the signal's number.
    """
    try:
        with printing_what_is_printable(), stopping_on_signals():
            try:
                yield
            except Exception as error:
                message = one_line_of_ours(error)
                if message is None and os.environ.get("NNUNET_SSL_TRACEBACK"):
                    raise
                if message is None:
                    print(printable(traceback.format_exc()), file=sys.stderr, end="")
                    message = REPORT
                print(f"{command}: {message}", file=sys.stderr)
                sys.exit(1)
    except (Stopped, KeyboardInterrupt) as stopped:
        number = stopped.number if isinstance(stopped, Stopped) else signal.SIGINT
        print(f"\n{command}: stopped by {signal.Signals(number).name}. {kept}", file=sys.stderr)
        sys.exit(128 + number)
