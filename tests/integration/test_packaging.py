"""The built wheel holds every package, and nothing but nnunet_ssl lands at the top of site-packages."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nnunet_ssl import __version__

CHECKOUT = Path(__file__).resolve().parents[2]
LINKS = ("nnunet_ssl/trainers", "nnunet_ssl/planners")
pytestmark = pytest.mark.skipif(not (CHECKOUT / "setup.cfg").exists(), reason="needs a checkout")


def sources() -> set[str]:
    """Every Python file that belongs into the wheel, under its installed name."""
    files = set()
    for folder, installed in (("nnunet_ssl", "nnunet_ssl"), ("trainers", LINKS[0]), ("planners", LINKS[1])):
        for file in (CHECKOUT / folder).rglob("*.py"):
            relative = file.relative_to(CHECKOUT / folder)
            if folder != "nnunet_ssl" or relative.parts[0] not in ("trainers", "planners"):
                files.add(f"{installed}/{relative.as_posix()}")
    return files


@pytest.fixture(params=["links", "links as text files"], scope="module")
def wheel(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, run_command: Callable[..., object]
) -> zipfile.ZipFile:
    """Wheel of a copy of the checkout; the second copy is what git makes on Windows."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, copy)
    for name in ("nnunet_ssl", "trainers", "planners"):
        shutil.copytree(CHECKOUT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    if request.param == "links as text files":
        for link in LINKS:
            (copy / link).unlink()
            (copy / link).write_text(f"../{Path(link).name}")
    code = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    run_command(["python", "-c", code], cwd=copy)
    return zipfile.ZipFile(next((copy / "dist").glob("*.whl")))


def test_every_module_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    assert {name for name in wheel.namelist() if name.endswith(".py")} == sources()
    assert {"nnunet_ssl/py.typed", "nnunet_ssl/report/gpu_times.csv"} <= set(wheel.namelist())


def test_only_our_package_lands_at_top_level(wheel: zipfile.ZipFile) -> None:
    information = f"nnunet_ssl-{__version__}.dist-info"
    assert {name.split("/")[0] for name in wheel.namelist()} == {"nnunet_ssl", information}
    assert wheel.read(f"{information}/top_level.txt").split() == [b"nnunet_ssl"]


def test_the_package_index_shows_no_link_that_leads_nowhere(wheel: zipfile.ZipFile) -> None:
    """There is no repository beside that page: no file can be linked, no picture be shown."""
    page = wheel.read(f"nnunet_ssl-{__version__}.dist-info/METADATA").decode().partition("\n\n")[2]
    assert "## Two commands" in page
    assert [target for target in re.findall(r"\]\(([^)]+)\)", page) if not target.startswith(("https://", "#"))] == []
    assert "CONTRIBUTING.md" in page


def test_links_are_what_they_should_be() -> None:
    for link in LINKS:
        path = CHECKOUT / link
        assert (str(path.readlink()) if path.is_symlink() else path.read_text()) == f"../{path.name}"


def test_entry_points_name_modules_of_the_wheel(wheel: zipfile.ZipFile) -> None:
    text = wheel.read(f"nnunet_ssl-{__version__}.dist-info/entry_points.txt").decode()
    targets = [line.split(" = ")[1] for line in text.splitlines() if " = " in line]
    modules = {target.split(":")[0].replace(".", "/") + ".py" for target in targets}
    assert modules <= set(wheel.namelist())
    assert "nnunet_ssl = nnunet_ssl._autoload:autoload" in text.split("[torch.backends]")[1]


def test_makefile_names_every_target_in_its_help() -> None:
    help_text = subprocess.run(["make", "help"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "test-fast", "check", "lint", "types", "format", "site", "clean"):
        assert f"make {target} " in help_text


def imported() -> set[str]:
    """Top-level modules that our sources import, those of the standard library and our own left out."""
    names = set()
    for folder in ("nnunet_ssl", "trainers", "planners"):
        for file in (CHECKOUT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"nnunet_ssl"}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    """What reaches us through nnunetv2 only is gone the day nnunetv2 does without it."""
    settings = configparser.ConfigParser()
    settings.read(CHECKOUT / "setup.cfg")
    extras = settings["options.extras_require"]

    def names(lines: str) -> set[str]:
        found = {re.split(r"[^\w.-]", line)[0] for line in lines.split("\n") if line}
        return {re.sub(r"[-_.]+", "-", name).lower() for name in found}

    declared = names(settings["options"]["install_requires"] + extras["testing"])
    of_module = {"mlflow": ["mlflow-skinny"], **packages_distributions()}  # which is not installed for the suite
    needed = {name: {re.sub(r"[-_.]+", "-", d).lower() for d in of_module.get(name, [name])} for name in imported()}
    assert {name for name, owners in needed.items() if not owners & (declared | names(extras["loggers"]))} == set()
    assert declared - set().union(*needed.values()) == set()


def test_the_source_distribution_holds_tests_and_docs(tmp_path: Path, run_command: Callable[..., object]) -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    if not listed:
        pytest.skip("needs git's list of files")
    for name in listed:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, target, follow_symlinks=False)
    code = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    run_command(["python", "-c", code], cwd=tmp_path)
    with tarfile.open(next((tmp_path / "dist").glob("*.tar.gz"))) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    left_out = {name for name in listed if name not in held and not name.startswith(".git")}
    assert left_out - set(LINKS) == set()


def test_constraints_name_all_that_is_needed_within_our_bounds() -> None:
    settings = configparser.ConfigParser()
    settings.read(CHECKOUT / "setup.cfg")
    wanted = [Requirement(line) for line in settings["options"]["install_requires"].split("\n") if line]
    lines = [line for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    assert {r.name for r in wanted if canonicalize_name(r.name) not in pinned} == set()
    assert {r.name for r in wanted if pinned[canonicalize_name(r.name)] not in r.specifier} == set()


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((CHECKOUT / ".github/workflows/ci.yml").read_text())
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    here = [line.partition("  #")[0] for line in (CHECKOUT / ".ci/run").read_text().splitlines()[3:]]
    said = {step.replace(" ${{ matrix.which }}", "") for step in steps}
    assert said == {line.replace(".venv/bin/python", "python") for line in here}
    named = {entry["which"] for entry in workflow["jobs"]["versions"]["strategy"]["matrix"]["include"]}
    assert {"oldest", "newest"} <= named
