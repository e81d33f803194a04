"""What goes wrong with a collection of images."""

from __future__ import annotations


class CorpusError(RuntimeError):
    """The images, or what was made of them, cannot be used as asked; the message says why and what to type next."""


class UnusableImage(RuntimeError):
    """One case cannot be used; the message is the reason. The others go on."""
