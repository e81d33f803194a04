"""Full disks and read-only folders through the real commands; all of them: tests/drills/full_disk.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

DRILL = Path(__file__).resolve().parents[1] / "drills" / "full_disk.py"


@pytest.fixture(scope="module")
def drill() -> Any:
    spec = importlib.util.spec_from_file_location("full_disk", DRILL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def template(drill: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full_disk") / "template"
    drill.make_world(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "mode", "leaving"),
    [
        ("import", "read-only", 0),
        ("preprocess", "full", 200_000),
        ("train, preprocessed read-only", "read-only", 0),
        ("fine-tune", "full", 200_000),
    ],
)
def test_a_small_disk(drill: Any, template: Path, tmp_path: Path, name: str, mode: str, leaving: int) -> None:
    world = tmp_path / "world"
    command = next(c for c in drill.commands(world) if c.name == name)
    with drill.small_disk(template, world, command) as disk:
        if not disk.stands_for(command, mode):
            pytest.skip("a full disk for a training needs a mount, which takes root")
        kept = drill.content(disk.folder)
        before = disk.fill(leaving) if mode == "full" else disk.forbid()
        done = drill.run(command.arguments, world, before)
        found = drill.faults(command, done, disk.folder, kept, mode)
    assert not found, f"{found}\n{done.stdout[-1500:]}\n{done.stderr[-2500:]}"
    if command.read_only_is_fine:
        assert "Only what is prepared already can be used" in done.stdout
