"""What files of others say is read, and acts on no terminal and in no page."""

from __future__ import annotations

import io
import sys

import pytest

from nnunet_ssl.checkpoints.hub.model_card import card_text
from nnunet_ssl.cli.errors import one_line_errors
from nnunet_ssl.corpus.overview.sections import Section, as_text
from nnunet_ssl.errors import CheckpointError, CorpusError
from nnunet_ssl.quoting import cell, markdown, printable

RED = "\x1b[31mred\x1b[0m"
HTML = '<script>alert("x")</script><img src=x onerror=alert(1)>![x](http://evil)'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (RED, r"\x1b[31mred\x1b[0m"),
        ("\x9b31m\x07\x08\r\x00", r"\x9b31m\x07\x08\r\x00"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),  # read from right to left
        ("a\u200b\u2028b", r"a\u200b\u2028b"),
        ("é 脑 °\n\tµm", "é 脑 °\n\tµm"),
    ],
)
def test_what_a_terminal_acts_on_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_a_cell_is_one_line() -> None:
    assert cell("a\nb\tc") == r"a\nb\tc"


def test_markdown_stays_text() -> None:
    shown = markdown(HTML + " `x` **b**")
    assert "<" not in shown
    assert r"!\[x\]" in shown
    assert r"\*\*b\*\*" in shown


@pytest.mark.parametrize("error", [CheckpointError, CorpusError])
def test_errors_quote(error: type[Exception]) -> None:
    assert "\x1b" not in str(error(f"There is no tensor {RED}."))


def test_commands_print_what_is_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with one_line_errors("command"):
        print(RED)
    assert out.getvalue() == r"\x1b[31mred\x1b[0m" + "\n"
    assert sys.stdout is out


def test_tables_of_a_corpus_keep_their_rows() -> None:
    text = as_text([Section("Bad files", ("case", "why"), [(RED, "a\nb")])])
    assert "\x1b" not in text
    assert len(text.splitlines()) == 3


def test_model_cards_hold_no_html_of_files() -> None:
    ssl = {
        **{
            "method": HTML,
            "backbone": "unet",
            "versions": {"nnunet_ssl": HTML},
            "datasets": [HTML],
            "config": {"a": HTML},
        },
        **{"recipe": {HTML: HTML}, "citations": [HTML], "settings": {"seed": HTML}, "patch_size": HTML},
    }
    facts = {"ssl": ssl, "trainer_name": HTML, "citations": [HTML, {"apa_citations": [HTML]}]}
    card = card_text(facts, ["checkpoint_final.pth"], "ORG/NAME", HTML)
    _, front, text = card.split("---\n", 2)
    outside = "".join(part for number, part in enumerate(text.split("```")) if number % 2 == 0)
    outside = "".join(part for number, part in enumerate(outside.split("`")) if number % 2 == 0)
    assert "<" not in outside
    assert "](http://evil)" not in outside.replace(r"\](", "")
    assert text.count("```") % 2 == 0
    assert front
