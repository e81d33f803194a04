"""Commands that print a page, in a pipe: `nnunet-ssl doctor | head`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SIGPIPE = 13  # which ends other programs there; Python ignores it


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """End without a word, as other programs do, when whoever reads this command's output has gone; exit code 128 + SIGPIPE."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would fail once more while Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + SIGPIPE)
