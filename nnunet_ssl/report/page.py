"""A page that is one file: headings, text, tables, pictures and commands, readable without network or scripts.

Scripts add what nobody misses without them: a slider through pictures, and a page that follows a run.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from nnunet_ssl.files.atomic import write_text

STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --soft: #5c6675; --line: #dfe3ea; --back: #ffffff;
  --panel: #f4f6f9; --accent: #0b62a4; --warn: #b35c00; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ee; --soft: #a0aab8; --line: #343c48; --back: #14181e;
  --panel: #1d232c; --accent: #6db6f2; --warn: #f0a04b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2, p, figcaption { overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p { margin: .6rem 0; max-width: 46rem; }
p.lead { font-size: 1.1rem; color: var(--soft); }
p.key { max-width: none; padding: .8rem 1rem; background: var(--panel); border-left: 4px solid var(--accent); }
p.warning { max-width: none; padding: .6rem 1rem; background: var(--panel); border-left: 4px solid var(--warn); }
ul { margin: .6rem 0; padding-left: 1.3rem; max-width: 52rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; font-size: .95rem; }
caption { caption-side: bottom; text-align: left; color: var(--soft); font-size: .88rem; padding-top: .4rem; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th { border-bottom-width: 2px; font-weight: 600; }
th:first-child, td:first-child, .facts td { text-align: left; overflow-wrap: anywhere; }
th:first-child, td:first-child { min-width: 11rem; }
td.best { font-weight: 700; }
td small, th small { display: block; font-weight: 400; color: var(--soft); white-space: nowrap; }
td.aside, th.aside { font-style: italic; color: var(--soft); background: var(--panel); border-left: 1px dashed var(--line); }
.facts th { border-bottom-width: 1px; white-space: nowrap; vertical-align: top; }
figure { margin: 1.2rem 0; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line);
  border-radius: 4px; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; max-width: 46rem; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 4px; padding: .8rem 1rem; margin: .8rem 0;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.slides { max-width: 100%; }
.slides input { display: none; width: min(30rem, 100%); accent-color: var(--accent); margin: .4rem 0; }
.scripted .slides input { display: block; }
.scripted .slides figure:not(.shown) { display: none; }
@media print { :root { --text: #000; --soft: #444; --line: #bbb; --back: #fff; --panel: #f5f5f5; --accent: #000; --warn: #000; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } h2 { break-after: avoid; }
  .wide { overflow: visible; } .wide table { font-size: 8pt; } .wide th, .wide td { padding: .2rem .35rem; }
  .wide th:first-child, .wide td:first-child { min-width: 5.5rem; } td small, th small { white-space: normal; }
  img { max-height: 22cm; width: auto; } figure, tr { break-inside: avoid; } }
"""

# Where the slider stands is kept in the address, so that it survives loading the page anew.
SCRIPT = """
document.documentElement.classList.add("scripted");
for (const box of document.querySelectorAll(".slides")) {
  const range = box.querySelector("input"), figures = [...box.querySelectorAll("figure")].reverse();
  const show = () => figures.forEach((figure, n) => figure.classList.toggle("shown", n === Number(range.value)));
  const kept = /slide=([0-9]+)/.exec(location.hash);
  if (kept) range.value = kept[1];
  range.addEventListener("input", () => {
    const newest = range.value === range.max;
    history.replaceState(null, "", newest ? "#" : "#slide=" + range.value);
    show();
  });
  show();
}
const news = document.getElementById("news");
if (news) {
  const age = Date.now() / 1000 - Number(news.dataset.written);
  if (age > Number(news.dataset.patience)) {
    const hours = Math.floor(age / 3600), minutes = Math.round(age % 3600 / 60);
    news.append(" No news for " + (hours ? hours + " h " : "") + minutes + " min: the run has ended or was killed.");
  }
  setTimeout(() => location.reload(), 30000);
}
"""

IMAGE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


class Marked(NamedTuple):
    """A cell of a table that is more than its text.

    note: a second line, in small letters; best: in bold; aside: set apart from the others, as numbers from elsewhere are.
    """

    text: str
    note: str = ""
    best: bool = False
    aside: bool = False


class Page:
    """An HTML page that is built top down and written as one file; every text is escaped."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]
        if lead:
            self._parts.append(f'<p class="lead">{escape(lead)}</p>')

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def key_message(self, text: str) -> None:
        """Add a paragraph that a hurried reader shall not miss."""
        self._parts.append(f'<p class="key">{escape(text)}</p>')

    def warning(self, text: str) -> None:
        """Add a paragraph on what makes the numbers below less than they seem."""
        self._parts.append(f'<p class="warning"><strong>Mind:</strong> {escape(text)}</p>')

    def items(self, texts: Sequence[str]) -> None:
        """Add a list."""
        self._parts.append(f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>")

    def table(self, header: Sequence[str | Marked], rows: Sequence[Sequence[object]], caption: str = "") -> None:
        """Add a table of texts, numbers and marked cells; raises ValueError when a row and the header differ in length."""
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"A table with {len(header)} columns got a row of {len(row)}: {list(row)}.")
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        head = "".join(_cell(entry, "th") for entry in header)
        body = "".join("<tr>" + "".join(_cell(entry, "td") for entry in row) + "</tr>" for row in rows)
        self._parts.append(
            f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def facts(self, facts: Mapping[str, object], caption: str = "") -> None:
        """Add a table of two columns: names, and what they are."""
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        rows = (f'<tr><th scope="row">{escape(k)}</th><td>{escape(str(v))}</td></tr>' for k, v in facts.items())
        self._parts.append(f'<table class="facts">{title}<tbody>{"".join(rows)}</tbody></table>')

    def figure(self, picture: str | os.PathLike[str] | bytes, caption: str) -> None:
        """Add a PNG or JPEG file, or the bytes of a PNG, with a caption, which also is its text for screen readers."""
        if isinstance(picture, bytes):
            self._add_figure(picture, ".png", caption)
            return
        path = Path(picture)
        if path.suffix.lower() not in IMAGE_TYPES:
            raise ValueError(f"{path.name} is no picture a page can hold; expected {', '.join(IMAGE_TYPES)}.")
        self._add_figure(path.read_bytes(), path.suffix.lower(), caption)

    def _add_figure(self, content: bytes, suffix: str, caption: str) -> None:
        source = f"data:{IMAGE_TYPES[suffix]};base64,{base64.b64encode(content).decode('ascii')}"
        self._parts.append(
            f'<figure><img src="{source}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
        )

    def slides(self, pictures: Sequence[tuple[str | os.PathLike[str], str]]) -> None:
        """Add PNG files with their captions and a slider through them; without scripts they are a column, the last on top."""
        number = len(pictures)
        last = f'max="{number - 1}" value="{number - 1}"'
        self._parts.append(f'<div class="slides"><input type="range" min="0" {last} aria-label="Choose a picture">')
        for picture, caption in reversed(pictures):
            self.figure(picture, caption)
        self._parts.append("</div>")

    def news(self, text: str, written: float, patience: float) -> None:
        """Add a key message on a run that goes on; the page is loaded anew as long as there is news.

        written: when (seconds since 1970) the news is from. patience: seconds after which a reader shall be told that there is
        none since.
        """
        self._parts.append(
            f'<p class="key" id="news" data-written="{written:.0f}" data-patience="{patience:.0f}">{escape(text)}</p>'
        )

    def commands(self, lines: Sequence[str]) -> None:
        """Add lines to type into a shell."""
        self._parts.append(f"<pre>{escape(chr(10).join(lines))}</pre>")

    def html(self) -> str:
        """The page as text."""
        body = "\n".join(self._parts)
        scripted = 'class="slides"' in body or 'id="news"' in body
        script = f"<script>{SCRIPT}</script>\n" if scripted else ""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
            f"<body>\n<main>\n{body}\n</main>\n{script}</body>\n</html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file."""
        write_text(self.html(), path)


def _cell(entry: object, tag: str) -> str:
    entry = entry if isinstance(entry, Marked) else Marked(str(entry))
    names = " ".join(name for name, wanted in (("best", entry.best), ("aside", entry.aside)) if wanted)
    attributes = ' scope="col"' * (tag == "th") + f' class="{names}"' * bool(names)
    note = f"<small>{escape(entry.note)}</small>" if entry.note else ""
    return f"<{tag}{attributes}>{escape(entry.text)}{note}</{tag}>"
