from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_ssl.report.page import Page

NASTY = "<script>alert('1')</script> & \"quotes\""


class Reader(HTMLParser):
    """Collects tags and attributes, and checks that every tag is closed in order."""

    VOID = frozenset({"meta", "img", "link", "br", "!doctype"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "p.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    return path


def full_page(picture: Path) -> Page:
    page = Page(NASTY, NASTY)
    page.heading(NASTY)
    page.paragraph(NASTY)
    page.key_message(NASTY)
    page.table(["a", NASTY], [[NASTY, 1]], NASTY)
    page.figure(picture, NASTY)
    page.commands([NASTY, "two"])
    return page


def test_everything_is_escaped_and_nested_well(picture: Path) -> None:
    reader = Reader()
    reader.feed(full_page(picture).html())
    assert reader.open == []
    assert "script" not in {tag for tag, _ in reader.tags}
    assert reader.text.count(NASTY) == 11  # the title twice, and once for each of the nine other texts
    assert [a["alt"] for tag, a in reader.tags if tag == "img"] == [NASTY]


def test_needs_nothing_from_elsewhere(picture: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    full_page(picture).write(file)
    html = file.read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|<link|<script", html)
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) == 1
    assert base64.b64decode(sources[0].removeprefix("data:image/png;base64,")) == picture.read_bytes()


def test_refuses_uneven_tables_and_unknown_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 columns got a row of 1"):
        Page("t").table(["a", "b"], [[1]])
    with pytest.raises(ValueError, match=r"x\.svg is no picture"):
        Page("t").figure(tmp_path / "x.svg", "c")
