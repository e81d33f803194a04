"""What goes wrong with a collection of images."""

from __future__ import annotations

from nnunet_ssl.quoting import printable


class CorpusError(RuntimeError):
    """The images, or what was made of them, cannot be used as asked; the message says why and what to type next."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))  # which quotes files, and ends on a terminal


class UnusableImage(RuntimeError):
    """One case cannot be used; the message is the reason. The others go on."""
