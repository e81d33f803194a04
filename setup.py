"""The one thing that setup.cfg cannot say: README.md as the package index shows it, where the rest of the repository is not.

Everything else stands in setup.cfg. No address of the repository is known yet that links could be made absolute with.
"""

import re
from pathlib import Path

from setuptools import setup

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


def for_the_index(text: str) -> str:
    """Links to files of the repository as text: what is linked, and the file's path in the source distribution."""
    return LINK.sub(lambda m: m[2] if m[1] or m[2].strip("`") == m[3] else f"{m[2]} (`{m[3]}`)", text)


setup(long_description=for_the_index(Path(__file__).with_name("README.md").read_text(encoding="utf-8")))
