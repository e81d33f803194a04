"""The documents say what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from nnunet_ssl.integration.class_lookup import names_of
from nnunet_ssl.methods import get_method, method_names

CHECKOUT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")]


def test_settings_page_is_up_to_date():
    done = subprocess.run(
        [sys.executable, CHECKOUT / "docs/make_settings.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_mistakes_page_is_what_the_commands_print():
    """About a hundred wrong inputs, in one fresh process: none prepares anything, each is answered in the words of the page."""
    script = CHECKOUT / "docs" / "make_mistakes.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_settings_page_explains_every_setting():
    rows = [line for line in (CHECKOUT / "docs/settings.md").read_text().splitlines() if line.startswith("| `")]
    assert rows
    assert [row for row in rows if row.rstrip().endswith("|  |")] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_every_own_method_has_a_page():
    own = [m for m in method_names() if get_method(m).__module__.startswith("nnunet_ssl.")]
    assert [m for m in own if not (CHECKOUT / f"docs/methods/{m}.md").is_file()] == []


def test_documents_name_only_trainers_and_planners_that_exist():
    known = {name for group in ("nnunetv2.trainers", "nnunetv2.planners") for name in names_of(group)}
    known |= {"SSLDenoisingTrainer", "SSLTrainer"}  # of the example; the base class
    pages = [page for page in DOCUMENTS if page.name not in ("mistakes.md", "CHANGELOG.md", "LOG.md")]
    named = {
        (page.name, name)
        for page in pages
        for name in re.findall(r"\bSSL(?:\w+Trainer|Planner\w+)\b", page.read_text())
    }
    assert len(named) > 25
    assert {(page, name) for page, name in named if name not in known} == set()


MODULES = {"nnUNetv2_pretrain_import": "import_corpus"}
OURS = re.compile(r"\b(nnUNetv2_(?:pretrain\w*|finetune|plan_finetune))\b((?: [^`\n#|]*)?)")


def flags_of(program: str) -> set[str]:
    """All flags of one of our commands, as they are typed."""
    name = MODULES.get(program) or program.removeprefix("nnUNetv2_").removeprefix("pretrain_")
    parser = import_module(f"nnunet_ssl.cli.{name}").build_parser()
    return {flag for action in parser._actions for flag in action.option_strings} | {"-h", "--help"}


def test_documents_use_only_flags_that_exist():
    """In code, by line and within sentences; what wrong inputs are answered with is a page of its own."""
    found, wrong = 0, []
    for document in DOCUMENTS:
        if document.name == "mistakes.md":
            continue
        text = document.read_text().replace("\\\n", " ")
        blocks = (r"```bash\n(.*?)```", re.DOTALL), (r"`(nnUNetv2_[^`]*)`", 0), (r"^    (nnUNetv2_.*)$", re.MULTILINE)
        code = "\n".join(found for pattern, how in blocks for found in re.findall(pattern, text, how))
        for program, rest in OURS.findall(code):
            typed = set(re.findall(r"(?<= )--?[A-Za-z][\w-]*", rest.split("&&")[0].split("|")[0]))
            found += bool(typed)
            wrong += [f"{document.name}: {program} {flag}" for flag in sorted(typed - flags_of(program))]
    assert wrong == []
    assert found > 30
