"""Texts from files of others, shown so that they are read and not obeyed: by a terminal, or by what renders Markdown."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, TextIO

# Control characters and what changes the direction of text, is invisible, or half a character.
ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")
ACTIVE_MARKDOWN = re.compile(r"([\[\]`*])")


def printable(text: str, keep: str = "\n\t") -> str:
    r"""The text with what a terminal would act on written out, such as \x1b, except for the characters in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c in keep or unicodedata.category(c) not in ACTING else c.encode("unicode_escape").decode() for c in text
    )


def cell(value: object) -> str:
    """A value as one line of a table."""
    return printable(str(value), keep="")


def markdown(value: object) -> str:
    """A value as plain text within Markdown: no HTML, links, pictures or code come of it."""
    return ACTIVE_MARKDOWN.sub(r"\\\1", escape(printable(" ".join(str(value).split()), keep=""), quote=False))


def code(value: object) -> str:
    """A value as code within a line of Markdown."""
    return f"`{printable(' '.join(str(value).split()), keep='').replace('`', chr(39))}`"


class Shown:
    """A text stream whose terminal is told nothing by what others wrote."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text as `printable` shows it."""
        return self._stream.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def printing_what_is_printable() -> Iterator[None]:
    """While the block runs, what is printed acts on no terminal. Progress bars, which do, are not on this stream."""
    before = sys.stdout
    sys.stdout = Shown(before)
    try:
        yield
    finally:
        sys.stdout = before
