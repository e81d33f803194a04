"""Errors as a user wants to read them, in our commands and in nnU-Net's."""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType

from nnunet_ssl.errors import NnunetSSLError
from nnunet_ssl.files.unwritable import explanation
from nnunet_ssl.quoting import printable


def one_line(error: BaseException) -> str | None:
    """What to print of an error instead of its traceback; None where the traceback is needed.

    That is the message of what a user can mend (`NnunetSSLError`), and what to do about a full or read-only disk, whoever ran
    into it. With NNUNET_SSL_TRACEBACK set every error keeps its traceback.
    """
    if os.environ.get("NNUNET_SSL_TRACEBACK") or not isinstance(error, Exception):
        return None
    message = explanation(error)
    if message is None and isinstance(error, NnunetSSLError):
        message = str(error)
    return None if message is None else printable(message)


def one_line_of_ours(error: BaseException) -> str | None:
    """As `one_line`, in a command of ours: what the system refuses there (a file, a closed pipe, memory) is no bug either."""
    message = one_line(error)
    if message is not None or os.environ.get("NNUNET_SSL_TRACEBACK"):
        return message
    if isinstance(error, OSError) and error.errno is not None:
        return printable(str(error))
    return f"There is not enough memory. {printable(str(error))}".strip() if isinstance(error, MemoryError) else None


def say_errors_in_one_line() -> None:
    """From now on, an error that ends this process is printed as `one_line` says: in commands of nnU-Net's, too."""
    before = sys.excepthook
    if getattr(before, "_of_nnunet_ssl", False):
        return

    def say(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        message = one_line(error)
        if message is None:
            before(kind, error, traceback)
        else:
            print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
            threading.excepthook = lambda _: None  # batchgenerators' threads complain that the main one has gone

    say._of_nnunet_ssl = True  # type: ignore[attr-defined]
    sys.excepthook = say


def counted(number: int, noun: str) -> str:
    """1 image, 2 images, 1,234 images."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
