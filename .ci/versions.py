#!/usr/bin/env python3
"""Install the package as users do, with the oldest and the newest versions that setup.cfg allows, and run quick tests on it.

    python .ci/versions.py                    both; CI does so after the suite
    python .ci/versions.py newest --keep      the newest of everything the registry offers, on the newest Python of this machine
    python .ci/versions.py oldest tests/unit  these tests instead of the quick ones

"oldest" is the oldest Python we promise, with every lower bound of setup.cfg; "newest" leaves all versions to pip; "tested" is
constraints.txt on the Python it was written with. Each is a virtual environment of its own, about 7 GB in TMPDIR, removed
afterwards unless --keep. The wheel is installed into it; of the checkout, only tests and documents are beside it. What this
machine cannot do is said in a line and left out. Needs the package registry and, beyond Python, nothing that is installed.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
NEWEST_TRIED = 14  # of Python 3; an interpreter for which torch has no wheel yet is passed over
ROOM = 16  # GiB that must be free: the environment, and what pip downloads and unpacks meanwhile
TOOLS = ("pytest", "pytest-randomly", "pytest-timeout", "pytest-xdist", "setuptools")
# Imports, registration with nnU-Net, transformer blocks, reading files of others, and one task's contract on both backbones.
QUICK = (
    "tests/unit/test_imports.py",
    "tests/unit/test_autoload.py",
    "tests/unit/test_transformer_blocks.py",
    "tests/unit/test_checkpoints_read.py",
    "tests/integration/test_registration.py",
    "tests/contract/test_public_face.py",
    "tests/contract/test_methods.py",
    "tests/contract/test_loggers.py",
)
CHOSEN = "not TestMethod or mae"


def settings() -> configparser.SectionProxy:
    """The options of setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(CHECKOUT / "setup.cfg")
    return parser["options"]


def lower_bounds() -> list[str]:
    """What setup.cfg promises, pinned to its lower bounds; what has none stays free."""
    found = (re.match(r"([\w.-]+).*?>=([\w.]+)", line) for line in settings()["install_requires"].splitlines())
    return [f"{match[1]}=={match[2]}" for match in found if match]


def oldest_python() -> int:
    """The minor version of the oldest Python 3 we promise."""
    return int(settings()["python_requires"].partition(">=3.")[2])


def interpreter(minor: int) -> str | None:
    """A working Python 3.`minor` that can make virtual environments, from the PATH or from pyenv."""
    managed = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
    for candidate in (shutil.which(f"python3.{minor}"), *map(str, reversed(managed)), sys.executable):
        question = f"import venv, ensurepip, sys; sys.exit(sys.version_info[:2] != (3, {minor}))"
        if candidate and not subprocess.run([candidate, "-c", question], capture_output=True).returncode:
            return candidate
    return None


def constraints(which: str) -> list[str]:
    """Lines for pip's -c."""
    if which == "tested":
        return (CHECKOUT / "constraints.txt").read_text().splitlines()
    return lower_bounds() if which == "oldest" else []


def pythons(which: str) -> Iterator[int]:
    """Minor versions to try, best first."""
    if which == "oldest":
        yield oldest_python()
    elif which == "tested":
        yield int(re.search(r"Python 3\.(\d+)", constraints(which)[0])[1])  # type: ignore[index]
    else:
        yield from range(NEWEST_TRIED, oldest_python(), -1)


def copy_sources(folder: Path) -> None:
    """The checkout without what was built in it."""
    built = (".venv*", ".git", "build", "dist", "*.egg-info", "*.dist-info", "__pycache__", ".*_cache", "demo_*")
    shutil.copytree(CHECKOUT, folder, symlinks=True, ignore=shutil.ignore_patterns(*built))


def install(python: str, folder: Path, which: str) -> Path | None:
    """A virtual environment with the wheel in it; None where there is nothing to install for this interpreter."""
    sources, environment = folder / "sources", folder / which
    copy_sources(sources)
    pip = environment / "bin" / "pip"
    (folder / "constraints.txt").write_text("\n".join(constraints(which)))
    subprocess.run([python, "-m", "venv", "--clear", environment], check=True)
    subprocess.run([pip, "wheel", "-q", "--no-deps", "-w", folder, sources], check=True)
    (wheel,) = folder.glob("*.whl")
    for name in ("nnunet_ssl", "trainers", "planners", "build"):  # tests shall find what is installed
        shutil.rmtree(sources / name, ignore_errors=True)
    # The newest of everything tries what the suite's own environment does without.
    extras = "[loggers]" if which == "newest" else ""
    wanted = ["-c", folder / "constraints.txt", f"{wheel}{extras}", *TOOLS]
    done = subprocess.run([pip, "install", "-q", *wanted], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        shutil.rmtree(sources)
        wheel.unlink()
        return None
    return environment


def run(which: str, tests: list[str], keep: bool) -> bool:
    """Install and test one set of versions; returns whether that went well, or could not be tried here."""
    start = time.monotonic()
    known = [(minor, python) for minor in pythons(which) if (python := interpreter(minor))]
    if not known:
        print(
            f"{which}: not tried, no Python {' or '.join(f'3.{m}' for m in pythons(which))} with venv is on this machine."
        )
        return True
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    if free < ROOM:
        print(f"{which}: not tried, {free:.0f} GiB are free in {tempfile.gettempdir()} and {ROOM} are needed.")
        return True
    folder = Path(tempfile.mkdtemp(prefix="nnunet_ssl_versions_"))
    try:
        for minor, python in known:
            environment = install(python, folder, which)
            if environment is not None:
                break
            print(f"{which}: on Python 3.{minor} pip found no set of versions (above).")
        else:
            return False
        versions = subprocess.run([environment / "bin/pip", "list"], capture_output=True, text=True).stdout
        named = re.findall(r"^((?:torch|nnunetv2|numpy|timm) .*)$", versions, re.M)
        minutes = (time.monotonic() - start) / 60
        print(
            f"{which}: Python 3.{minor}, {', '.join(re.sub(' +', ' ', n) for n in named)}; {minutes:.1f} min",
            flush=True,
        )
        chosen = tests or [*QUICK, "-k", CHOSEN]
        flags = ["-q", "-n", str(min(os.cpu_count() or 1, 2)), "--dist", "worksteal"]
        variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([environment / "bin/pytest", *flags, *chosen], cwd=folder / "sources", env=variables)
        print(f"{which}: {(time.monotonic() - start) / 60:.1f} min in all", flush=True)
        return done.returncode == 0
    finally:
        if keep:
            print(f"{which}: kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Returns 1 when something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="?", choices=("oldest", "newest", "tested"), help="default: oldest and newest")
    parser.add_argument("tests", nargs="*", help="files or folders of tests (default: the quick ones)")
    parser.add_argument("--keep", action="store_true", help="leave the environment there and say where")
    args = parser.parse_args()
    results = [run(which, args.tests, args.keep) for which in ([args.which] if args.which else ("oldest", "newest"))]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
