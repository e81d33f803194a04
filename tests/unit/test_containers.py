"""The two recipes for containers agree with each other and with the package; neither is built here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
DOCKER, APPTAINER = (CHECKOUT / "containers" / name for name in ("Dockerfile", "nnunet_ssl.def"))


def words(pattern: str, file: Path) -> list[str]:
    """What a pattern captures in a file, word by word."""
    (found,) = set(re.findall(pattern, file.read_text(), re.MULTILINE))
    return sorted(found.split())


@pytest.mark.parametrize(
    "pattern",
    [
        r"^F(?:ROM|rom:) (nvidia/cuda:\S+)$",
        r"--no-install-recommends (.*?)(?: \\)?$",
        r"pip install .*?(-c /opt/source/constraints.txt /opt/source)\b",
        r"(nnUNet_raw=\S+ nnUNet_preprocessed=\S+ nnUNet_results=\S+)",
    ],
)
def test_both_say_the_same(pattern: str) -> None:
    assert words(pattern, DOCKER) == words(pattern, APPTAINER)


def test_nobody_is_root_in_the_container() -> None:
    users = re.findall(r"^USER (.*)$", DOCKER.read_text(), re.MULTILINE)
    assert users == ["5000"]
    assert "--uid 5000" in DOCKER.read_text()


def test_what_is_installed_is_sent_along() -> None:
    """All that setup.cfg and setup.py read reaches the build."""
    ignored = {line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"}
    needed = ("nnunet_ssl", "trainers", "planners", "setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE")
    assert ignored & {*needed, "constraints.txt"} == set()


def test_the_linter_is_content() -> None:
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("needs hadolint: pip install -e .[dev]")
    done = subprocess.run([linter, DOCKER], capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0
