"""Commands that are printed can be typed as they are: what is put into them is quoted, or cannot need it."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunet_ssl.corpus.folders import how_to_spell, require_folder
from nnunet_ssl.errors import CorpusError

ROOT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(
    r"(?:^|[\s`:(])(?:nnUNetv2_\w+|nnunet-ssl \w+|export |unset |mkdir |ls -|cd |rm |mv |cp |kill |hf |"
    r"pip install|datalad |git |dcm2niix |python -m)"
)
END = re.compile(r"\n|`|[.;:)](?:\s|$)|, (?:or|and|which|where)\b|\s{3,}")
QUOTING = {"quote", "join", "quoted"}
# Names of values that hold nothing a shell acts on: numbers, and what comes from a list of ours.
HARMLESS = {
    *("number", "dataset", "dataset_id", "count", "len", "trainer", "weights", "start", "folds", "fold", "first"),
    *("variable", "AUTOLOAD", "VARIABLE"),
}
EXCEPTIONS = {
    "nnunet_ssl/checkpoints/hub/model_card.py": "repository ids, which the hub's rules keep to letters, digits and ._-/",
    "nnunet_ssl/cli/models.py": "names of our own list",
    "nnunet_ssl/demo/job.py": "split at spaces and run as it is; names of ours",
    "nnunet_ssl/cli/doctor.py::check_versions": "names of installed packages",
    "nnunet_ssl/cli/doctor.py::check_imports": "names of installed packages",
    "nnunet_ssl/cli/doctor.py::check_plugins": "names of installed packages",
    "trainers/loop/run_lock.py::_refusal": "the number of a process, and a remark in brackets",
    "trainers/distributed/sharding.py::require_sharding": "a sentence of ours",
}


def unquoted(source: str) -> Iterator[tuple[str, int, str]]:
    """(function, line, expression) of what is put into a printed command as it is."""
    yield from _walk(ast.parse(source), "", {})


def _walk(node: ast.AST, where: str, quoted: dict[str, bool]) -> Iterator[tuple[str, int, str]]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        where = node.name
        quoted = {**quoted, **dict.fromkeys(_quoted_names(node), True)}
    if isinstance(node, ast.JoinedStr):
        yield from ((where, node.lineno, text) for text in _in_commands(node, quoted))
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, where, quoted)


def _quoted_names(function: ast.AST) -> Iterator[str]:
    """Names that a function gives to what it has quoted."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            yield from (name.id for name, value in pairs if isinstance(name, ast.Name) and _is_quoting(value))


def _is_quoting(value: ast.AST) -> bool:
    return isinstance(value, ast.Call) and getattr(value.func, "attr", getattr(value.func, "id", "")) in QUOTING


def _in_commands(text: ast.JoinedStr, quoted: dict[str, bool]) -> Iterator[str]:
    inside = False
    for part in text.values:
        if isinstance(part, ast.Constant):
            rest = str(part.value)
            last = max((m.end() for m in COMMAND.finditer(rest)), default=None)
            if last is not None:
                inside, rest = True, rest[last:]
            inside = inside and not END.search(rest)
        elif inside and isinstance(part, ast.FormattedValue):
            value = part.value
            names = {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(value)} - {""}
            fine = _is_quoting(value) or (
                names <= HARMLESS | {"self", "dataset_name", "name"} and "dataset_id" in names
            )
            if not fine and not (isinstance(value, ast.Name) and (value.id in HARMLESS or quoted.get(value.id))):
                yield ast.unparse(value)


def test_what_is_put_into_commands_is_quoted() -> None:
    files = [f for folder in ("nnunet_ssl", "trainers", "planners") for f in sorted((ROOT / folder).rglob("*.py"))]
    files = [f for f in files if not {"trainers", "planners"} & set(f.relative_to(ROOT).parts[1:])]  # links to those
    found = []
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        for where, line, text in unquoted(file.read_text(encoding="utf-8")):
            if name not in EXCEPTIONS and f"{name}::{where}" not in EXCEPTIONS:
                found.append(f"{name}:{line} ({where}): {{{text}}}")
    assert not found, "quote these with shlex.quote:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('f"nnUNetv2_train 4 -pretrained_weights {path}"', True),
        ('f"Type:\\n  export {variable}={value}"', True),
        ('f"mkdir -p {folder}"', True),
        ('f"Predict: nnUNetv2_predict -d {number} -m {model}"', True),
        ('f"nnUNetv2_train 4 -pretrained_weights {shlex.quote(path)}"', False),
        ('f"nnUNetv2_train {dataset_id(name)} 3d_fullres"', False),
        ('f"{path} is missing. Run nnUNetv2_train 4. Then look at {path}"', False),
        ('f"nnUNetv2_pretrain_import wrote it; {path} stays"', False),
    ],
)
def test_unquoted_insertions_are_seen(line: str, wrong: bool) -> None:
    assert bool(list(unquoted(line))) is wrong


@pytest.mark.parametrize(
    ("value", "says", "path"),
    [
        ('"/data/raw"', "quotes", "/data/raw"),
        ("'/data/my raw'", "quotes", "/data/my raw"),
        ("~/raw", "~", "/home/me/raw"),
        ('"~/raw"', "quotes", "/home/me/raw"),
        ("$SCRATCH/raw", "a variable", "/scratch/raw"),
        ("/data/raw ", "spaces", "/data/raw"),
    ],
)
def test_values_that_no_shell_has_seen(value: str, says: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    advice = how_to_spell("nnUNet_raw", value)
    assert advice is not None
    assert says in advice
    assert shlex.split(advice.splitlines()[-1])[-1] == f"nnUNet_raw={path}"
    monkeypatch.setenv("nnUNet_raw", value)
    with pytest.raises(CorpusError, match="export nnUNet_raw="):
        require_folder("nnUNet_raw")


def test_values_that_are_paths(tmp_path: Path) -> None:
    assert how_to_spell("nnUNet_raw", "/not/there/yet") is None
    (tmp_path / "~").mkdir()
    assert how_to_spell("nnUNet_raw", str(tmp_path / "~")) is None
