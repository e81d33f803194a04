"""Settings of the docs site, which `make site` builds with Sphinx. Its pages are the Markdown files of this repository.

The start page is README.md; NAVIGATION is the menu. A page that is missing there is an error, as is a link that leads nowhere.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "docs")]

from reference import reference  # noqa: E402

from nnunet_ssl import __version__  # noqa: E402  (of this checkout)

NAVIGATION = {
    "Start": [
        "docs/install",
        "docs/tutorials/labelled",
        "docs/tutorials/scans",
        "docs/tutorials/public_weights",
        "docs/tutorials/cluster",
        "docs/tutorials/own_task",
        "docs/faq",
    ],
    "How to": [
        "docs/choosing",
        "docs/corpus",
        "docs/preprocessing",
        "docs/results",
        "docs/loggers",
        "docs/finetuning",
        "docs/comparing",
        "docs/features",
        "docs/models",
        "docs/scaling",
        "docs/benchmark",
    ],
    "Pretext tasks": ["docs/methods/README", "docs/methods/*"],
    "Look up": ["docs/commands", "docs/settings", "docs/api", "docs/mistakes"],
    "Before you rely on it": ["docs/limits", "docs/reliability", "docs/data"],
    "Take part": ["CONTRIBUTING", "CHANGELOG", "benchmarks/LOG"],
}

project = "nnunet_ssl"
author = "the nnunet_ssl developers"
release = version = __version__
project_copyright = "the nnunet_ssl developers, Apache-2.0"

root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/*.md",
    "docs/methods/*.md",
    "docs/tutorials/*.md",
    "benchmarks/LOG.md",
]
exclude_patterns = [".*", "build", "demo", "dist", "examples", "nnunet_ssl*", "planners", "tests", "trainers"]
extensions = ["myst_parser"]
myst_heading_anchors = 4  # links to headings as on GitHub

html_theme = "furo"
html_title = f"nnunet_ssl {__version__}"
html_extra_path = ["index.html"]  # leads to README.html
html_copy_source = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
highlight_language = "text"  # of indented blocks
smartquotes = False  # what is typed and printed stays as it is


def navigation() -> str:
    """The menu, as Sphinx wants it at the end of the start page."""
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"
        for caption, pages in NAVIGATION.items()
    )


def add_what_only_sphinx_understands(app: Any, docname: str, source: list[str]) -> None:
    """The files stay free of it, for those who read them elsewhere."""
    if docname == root_doc:
        source[0] += navigation()
    if docname == "docs/api":
        source[0] += reference()


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_what_only_sphinx_understands)
