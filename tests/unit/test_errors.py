"""One root for what a user can mend, and one line for it; all else is a bug, and every `raise` of the package knows which."""

from __future__ import annotations

import ast
import builtins
import errno
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import nnunet_ssl
from nnunet_ssl import errors
from nnunet_ssl.cli.errors import REPORT, one_line_errors
from nnunet_ssl.errors import CannotWrite, CheckpointError, NnunetSSLError, SettingsError
from nnunet_ssl.messages import one_line
from nnunet_ssl.trainers.device.out_of_memory import OutOfMemory

PACKAGE = Path(nnunet_ssl.__file__).parent
CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, NnunetSSLError)]

# Exceptions of Python's own that the package raises all the same, by file and function, and why no user sees them.
CAUGHT = "its caller makes a line of it that names the file"
MISUSE = "called wrongly by a programmer; what users say about it is checked before"
SYSTEM = "the system's own error, with its number and file"
PLAIN = {
    "__init__.py": {"__getattr__": "Python's protocol of modules"},
    "settings/allowed.py": {"parse": "a config dataclass with hints that JSON cannot fill is its author's mistake"},
    "settings/checker.py": {"rules": "likewise"},
    "checkpoints/adaptation/adapt.py": {"adapt": MISUSE},
    "checkpoints/adaptation/channels.py": {"fit_channels": MISUSE},
    "checkpoints/export/portable.py": {"portable": MISUSE},
    "checkpoints/networks/arguments.py": dict.fromkeys(
        ("_integer.read", "_integers.read", "_number", "_rate", "_boolean", "_layer.read", "_options"), CAUGHT
    ),
    "checkpoints/networks/spec.py": {"_consistent": CAUGHT},
    "checkpoints/screening/numpy_scalars.py": {"_NumberType.__init__": CAUGHT, "_number": CAUGHT},
    "checkpoints/screening/pickle_screen.py": {"_tuple": CAUGHT},
    "demo/data.py": {"write_demo_datasets": MISUSE},
    "features/placed_map.py": {"PlacedMap.pooled_in": MISUSE},
    "files/atomic.py": {"_create": SYSTEM},
    "files/heartbeat.py": {"Heartbeat._make_folder": SYSTEM},
    "finetune/schedules.py": {"make_schedule": MISUSE},
    "integration/ext_trainers/nnunet_ssl_trainers.py": {"__getattr__": "Python's protocol of modules"},
    "methods/models_genesis.py": {"ModelsGenesis._shuffle_widths": MISUSE},
    "targets/table.py": {"_target": CAUGHT},
    "trainers/loop/micro_batches.py": {
        "_views": "a task of others that prepares what cannot be split is its author's mistake"
    },
    "report/comparison/paired.py": {"compare": MISUSE},
    "report/page.py": {"Page.table": MISUSE, "Page.figure": MISUSE},
    "report/entries.py": dict.fromkeys(("views_of", "_first_channel"), MISUSE),
    "report/geometry.py": dict.fromkeys(("Geometry.__post_init__", "Geometry.require"), MISUSE),
    "report/overlays.py": {"draw_overlay": MISUSE},
    "settings/blocks.py": {"require": "for `__post_init__` of configs, see the test below"},
    "trainers/data/batches.py": {"Chunks.join": MISUSE},
    "trainers/pretraining.py": {"__getattr__": "Python's protocol of modules"},
    "trainers/launch.py": {"wait_for": "a bug in one of several processes, with its traceback"},
    "trainers/data/patches.py": {"PatchDataset.__init__": MISUSE},
    "trainers/ssl_trainer.py": {"SSLTrainer.initialize": MISUSE},
    "views/crops.py": {"check_crop": "called by `views`"},
    "views/rng.py": {"dropped": MISUSE, "_views": MISUSE},
    "views/masks.py": {"check_ratio": "for `__post_init__`"},
}
# Functions of configs and tasks whose ValueError becomes a SettingsError that names the block: `read_config`, `views_of`.
WRAPPED = r"\w+(Config|Settings)\.__post_init__|\w+\.views"
BUILTIN = {name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)}
BUILTIN -= {"NotImplementedError", "StopIteration"}
# Exceptions beside nnunet_ssl/errors.py, which steer and are caught where they are meant to be.
STEERING = {
    "Waiting",  # a failed check of nnunet_ssl.testing
    "Enough", "Refused", "ScreenError", "DamagedError", "DoesNotFitError", "Stopped", "Elsewhere", "NotCompiled", "CannotCount",
}  # fmt: skip


def raises(tree: ast.AST, inside: tuple[str, ...] = ()) -> Iterator[tuple[str, str, int]]:
    """(function, class, line) of every raise of an exception of Python's own."""
    for node in ast.iter_child_nodes(tree):
        own = inside
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            own = (*inside, node.name)
        if isinstance(node, ast.Raise) and node.exc is not None:
            what = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(what, ast.Name) and what.id in BUILTIN:
                yield ".".join(inside), what.id, node.lineno
        yield from raises(node, own)


def sources() -> Iterator[tuple[str, ast.AST]]:
    """Every file of the package, the linked rooms among them, and its syntax tree."""
    for room in (PACKAGE, PACKAGE / "trainers", PACKAGE / "planners"):
        for path in sorted(room.rglob("*.py")):
            yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_every_error_that_input_can_cause_has_our_root():
    unknown, seen, files = [], set(), 0
    for file, tree in sources():
        files += 1
        for function, name, line in raises(tree):
            if re.fullmatch(WRAPPED, function) and name == "ValueError":
                continue
            seen.add((file, function))
            if function not in PLAIN.get(file, {}):
                unknown.append(f"{file}:{line} {function} raises {name}")
    assert files > 250
    assert not unknown, "raise a class of nnunet_ssl/errors.py, or say in PLAIN why no user sees it:\n" + "\n".join(
        unknown
    )
    assert seen == {(file, function) for file, functions in PLAIN.items() for function in functions}, (
        "PLAIN is out of date"
    )


def test_require_is_for_configs():
    for file, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.endswith(("Config", "Settings")):
                names = {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
                assert "require" not in names, f"{file}: {node.name}"


def test_error_classes_have_one_home():
    found = set()
    for file, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and file != "errors.py":
                bases = {b.id for b in node.bases if isinstance(b, ast.Name)}
                if bases & (BUILTIN | {"BaseException"} | {c.__name__ for c in CLASSES}):
                    found.add(node.name)
    assert found == STEERING | {"OutOfMemory"}  # the latter is torch's as well, which errors.py does not import
    assert issubclass(OutOfMemory, errors.MachineError)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_is_one_line_with_attributes_and_survives_its_process(cls):
    start = (errno.ENOSPC,) if cls is CannotWrite else ()
    error = cls(*start, "It \x1b[2J is wrong.", path="/x")
    again = pickle.loads(pickle.dumps(error))
    for own in (error, again):
        assert type(own) is cls
        assert one_line(own) == str(own) == "It \\x1b[2J is wrong."
        assert (own.path, own.expected, own.found) == ("/x", None, None)
    assert issubclass(cls, errors.NnunetSSLError)


def test_old_except_clauses_hold():
    assert issubclass(SettingsError, ValueError)
    assert issubclass(errors.BackboneError, ValueError)
    assert issubclass(CheckpointError, RuntimeError)
    assert issubclass(errors.CorpusError, RuntimeError)
    assert issubclass(errors.NotPreprocessed, FileNotFoundError)
    assert issubclass(errors.FolderTaken, FileExistsError)
    assert issubclass(CannotWrite, OSError)


def mended() -> None:
    raise SettingsError("seed must be a whole number.")


def bug() -> None:
    {"a": 1}["b"]


def missing() -> None:
    Path("/not/there").read_text()


def wrong_type() -> None:
    mapping: dict = {"seed": 1}
    mapping["seed"]["x"] = 2


@pytest.mark.parametrize(
    ("deed", "line", "shows_traceback"),
    [
        (mended, "seed must be a whole number.", False),
        (missing, "[Errno 2] No such file or directory: '/not/there'", False),
        (bug, REPORT, True),
        (wrong_type, REPORT, True),
    ],
)
def test_commands_tell_a_users_mistake_from_ours(deed, line, shows_traceback, capsys, monkeypatch):
    monkeypatch.delenv("NNUNET_SSL_TRACEBACK", raising=False)
    deed.__globals__["__name__"], before = (
        "nnunet_ssl.somewhere",
        deed.__globals__["__name__"],
    )  # our own innermost frame
    try:
        with pytest.raises(SystemExit) as left, one_line_errors("nnUNetv2_thing"):
            deed()
    finally:
        deed.__globals__["__name__"] = before
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == f"nnUNetv2_thing: {line}"
    assert ("Traceback" in said) == (deed.__name__ in said) == shows_traceback
    assert len(said.splitlines()) == 1 or shows_traceback
    monkeypatch.setenv("NNUNET_SSL_TRACEBACK", "1")
    with pytest.raises(Exception, match=r".") as raised, one_line_errors("nnUNetv2_thing"):
        deed()
    assert not isinstance(raised.value, SystemExit)
