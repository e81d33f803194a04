"""The lines of a table of text, before anything takes them apart: encoding, quotes, length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from os.path import basename
from typing import BinaryIO

from nnunet_ssl.corpus.sources.found import Mistake
from nnunet_ssl.errors import CorpusError
from nnunet_ssl.files.entering import why_no_content, why_no_file

MAX_LINE = 100_000  # bytes
OTHER_ENCODINGS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), (b"PK\x03\x04", "a spreadsheet (xlsx, ods)"))


def read_lines(source: str) -> tuple[bytes, str, list[Mistake]]:
    """(the lines, with bad ones emptied; the delimiter; what is wrong with the bad ones, each with its row).

    Raises CorpusError where the file is none, is in another encoding, or its header is bad.
    """
    reason = why_no_file(source) or why_no_content(source)
    if reason:
        raise CorpusError(f"{source} cannot be read as a table: {reason}.")
    kept, mistakes, delimiter = bytearray(), list[Mistake](), ","
    with open(source, "rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            if number == 1:
                _require_text(source, line)
                line = line.removeprefix(b"\xef\xbb\xbf")
                first = line.decode("utf-8", "replace")
                delimiter = "\t" if source.lower().endswith(".tsv") else max(",;\t", key=first.count)
            reason = _why_bad(line, delimiter)
            if reason and number == 1:
                raise CorpusError(f"{source}, row 1 (the header): {reason}.")
            if reason:
                mistakes.append(Mistake(f"{basename(source)}, row {number}", reason))
                line = b"\n"
            kept += line
    return bytes(kept), delimiter, mistakes


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines; of one that is too long as much as shows it."""
    while line := file.readline(MAX_LINE + 1):
        yield line
        while line and not line.endswith(b"\n") and len(line) > MAX_LINE:
            line = file.readline(MAX_LINE + 1)


def _require_text(source: str, first: bytes) -> None:
    for start, name in OTHER_ENCODINGS:
        if first.startswith(start):
            raise CorpusError(f"{source} is {name}, not a table of text in UTF-8. Save it as CSV in UTF-8.")


def _why_bad(line: bytes, delimiter: str) -> str | None:
    if len(line) > MAX_LINE:
        return f"more than {MAX_LINE:,} characters in a row"
    if b"\0" in line:
        return "holds a zero byte: the file is no text in UTF-8"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not in UTF-8 (byte {error.start + 1} is {line[error.start]:#04x}); save the table in UTF-8"
    if text.count('"') % 2 and re.search(rf'(?:^|{re.escape(delimiter)})\s*"', text):
        return f"a quote that is not closed: {text.strip()[:80]}"
    return None
