"""What the tutorials of docs/tutorials tell their readers to type, and what they say is printed then."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PATH = re.compile(r"<!-- path: (\w+) -->\n(.*?)<!-- end of path -->", re.DOTALL)


def blocks(text: str, language: str) -> str:
    """All blocks of code of a language, one after the other."""
    return "".join(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))


def paths() -> dict[str, tuple[str, str]]:
    """(commands, output) by the name of the path: all steps between the two comments."""
    pages = sorted((CHECKOUT / "docs" / "tutorials").glob("*.md"))
    found = [match for page in pages for match in PATH.findall(page.read_text())]
    return {name: (blocks(text, "bash"), blocks(text, "text")) for name, text in found}
