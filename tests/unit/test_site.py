"""The docs site, built as `make site` builds it: complete, without broken links, and without anything from elsewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "form": "action"}


class Page(HTMLParser):
    """Links, names of places, and what a browser fetches without being asked."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.fetched: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attributes if value}
        self.names.update(value for name, value in found.items() if name in ("id", "name"))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if LOADED.get(tag) in found:
            self.fetched.append(found[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(name, reason="pip install -e .[docs]")
    folder = tmp_path_factory.mktemp("site")
    (recipe,) = re.findall(r"^site: .*\n\t(.*)$", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    recipe = recipe.replace("build/site_cache", f"{folder}/cache").replace("build/site", f"{folder}/html")
    command = [sys.executable, *shlex.split(recipe)[1:]]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


def test_the_site_is_whole_and_needs_no_network(site: Path) -> None:
    pages = {file: Page(file) for file in site.rglob("*.html")}
    for page in ("README", "docs/faq", "docs/tutorials/scans", "docs/methods/mae", "CONTRIBUTING"):
        assert site / f"{page}.html" in pages
    wrong = []
    for file, page in pages.items():
        wrong += [f"{file.name}: {source}" for source in page.fetched if "//" in source]
        for link in page.links:
            target, place = urldefrag(unquote(link))
            if "://" in target or target.startswith("mailto:"):
                continue
            found = (file.parent / target).resolve() if target else file
            if not found.is_file() or (place and found in pages and place not in pages[found].names):
                wrong.append(f"{file.name}: {link}")
    assert wrong == []
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text()) == []


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    import nnunet_ssl

    names = Page(site / "docs" / "api.html").names
    modules = {"masks", "rng"}
    assert {f"nnunet_ssl.{name}" for name in nnunet_ssl.PUBLIC if name not in modules} - names == set()
    assert {name.split(".")[1] for name in names if name.count(".") > 1} >= {*modules, "Method"}  # with what is in them
