"""Errors of our commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nnunet_ssl.messages import one_line
from nnunet_ssl.quoting import printing_what_is_printable


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Print an error that a person can do something about as `command: message` and exit with 1.

    Errors from elsewhere keep their traceback; see `one_line`. What is printed meanwhile acts on no terminal.
    """
    try:
        with printing_what_is_printable():
            yield
    except Exception as error:
        message = one_line(error)
        if message is None:
            raise
        print(f"{command}: {message}", file=sys.stderr)
        sys.exit(1)
