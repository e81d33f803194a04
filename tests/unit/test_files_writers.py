"""Whatever writes a file of ours goes through nnunet_ssl/files/atomic.py."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ATOMIC = {"atomic_write", "atomic_path"}
METHODS = {
    *("write_text", "write_bytes", "touch"),  # Path
    *("to_csv", "to_parquet", "to_json", "to_pickle", "to_excel", "to_feather", "to_html"),  # pandas
    *("savefig", "imsave", "WriteImage", "write_image", "tofile", "savetxt", "savez", "savez_compressed"),
    *("save_file", "save_json", "save_pickle", "write_table", "save_case", "copyfile", "copy2", "copytree"),
}
# What is called by a bare name would be one of ours, unless it is a library's.
LIBRARY_NAMES = {"save_file", "save_json", "save_pickle", "copyfile", "copy2", "copytree", "imsave"}
PAIRS = {
    ("json", "dump"),
    ("pickle", "dump"),
    ("torch", "save"),
    ("np", "save"),
    ("shutil", "copy"),
    ("shutil", "move"),
}

EXCEPTIONS = {
    "planners/sharing/made_from.py::Part._append": "lines that are added one by one; one that is not whole counts as none",
    "nnunet_ssl/demo/steps.py::_run_command": "a log that grows while a command runs",
    "nnunet_ssl/report/corpus_page.py::_png": "into memory",
    "nnunet_ssl/report/comparison/pictures.py::png": "into memory",
    "nnunet_ssl/report/embedding_page.py::_scatter": "into memory",
    "nnunet_ssl/comparison/work.py::run_in_process": "a log that grows while a cell runs",
    "planners/preprocessing/storage.py::save_case": "into the folder of unfinished cases, from which whole ones are moved",
    "planners/synthetic.py::_write_descriptions": "into a temporary folder",
    "trainers/device/memory.py::forget_peaks": "/proc is no disk",
    "nnunet_ssl/cli/pipes.py::until_nobody_reads": "/dev/null keeps nothing",
    "nnunet_ssl/testing/tiny_data.py::write_cases": "into a temporary folder of a test",
    "nnunet_ssl/testing/tiny_data.py::write_dataset": "into a temporary folder of a test",
}


def bypasses(source: str) -> Iterator[tuple[str, int]]:
    """(function, line) of every call that writes a file outside a block of atomic_write or atomic_path."""
    yield from _walk(ast.parse(source), "", inside=False)


def _walk(node: ast.AST, where: str, inside: bool) -> Iterator[tuple[str, int]]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        where = f"{where}.{node.name}".strip(".")
    if isinstance(node, ast.With):
        names = {_name(item.context_expr.func) for item in node.items if isinstance(item.context_expr, ast.Call)}
        inside = inside or bool(names & ATOMIC)
    if isinstance(node, ast.Call) and not inside and _writes(node):
        yield where, node.lineno
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, where, inside)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _writes(call: ast.Call) -> bool:
    function, name = call.func, _name(call.func)
    if isinstance(function, ast.Attribute):
        owner = function.value.id if isinstance(function.value, ast.Name) else ""
        if owner == "os" and name in ("open", "fdopen"):
            return name == "open" and any(flag in ast.dump(call) for flag in ("O_CREAT", "O_WRONLY"))
        if name.startswith("to_") and not call.args:
            return False  # into a text, or one of ours
        if (owner, name) in PAIRS or (name in METHODS and owner not in ("self", "cls", "super")):
            return True
    elif name in LIBRARY_NAMES:
        return True
    return name == "open" and any(
        isinstance(value, ast.Constant) and isinstance(value.value, str) and set(value.value) & set("wxa+")
        for value in [
            *call.args[isinstance(function, ast.Name) : 2],
            *(k.value for k in call.keywords if k.arg == "mode"),
        ]
        if isinstance(value, ast.Constant) and len(str(value.value)) <= 3
    )


def test_every_writer_goes_through_atomic_write() -> None:
    files = [f for folder in ("nnunet_ssl", "trainers", "planners") for f in sorted((ROOT / folder).rglob("*.py"))]
    files = [f for f in files if not {"trainers", "planners"} & set(f.relative_to(ROOT).parts[1:])]  # links to those
    assert len(files) > 200
    found: dict[str, list[int]] = {}
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        if not name.startswith("nnunet_ssl/files/"):  # locks and probes
            for where, line in bypasses(file.read_text(encoding="utf-8")):
                found.setdefault(f"{name}::{where}", []).append(line)
    new = {place: lines for place, lines in found.items() if place not in EXCEPTIONS}
    assert not new, f"these write without nnunet_ssl/files/atomic.py: {new}"
    assert set(EXCEPTIONS) <= set(found), "exceptions that are none any more"


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "path.open('wb')",
        "io.open(path, 'x')",
        "os.open(path, os.O_CREAT | os.O_WRONLY)",
        "path.write_text('')",
        "Path(path).write_bytes(b'')",
        "json.dump(content, file)",
        "torch.save(content, path)",
        "frame.to_csv(path)",
        "figure.savefig(path)",
        "sitk.WriteImage(image, path)",
        "save_json(content, path)",
        "save_file(tensors, path)",
        "pq.write_table(table, path)",
        "np.save(path, array)",
        "shutil.copyfile(a, b)",
        "shutil.copy2(a, b)",
    ],
)
def test_writers_are_seen(line: str) -> None:
    assert list(bypasses(line)) == [("", 1)]
    block = textwrap.dedent(f"""
        def save():
            with atomic_path(path) as temporary:
                {line}
    """)
    assert not list(bypasses(block))


@pytest.mark.parametrize(
    "line", ["open(path)", "open(path, 'rb')", "path.open()", "write_json(a, b)", "webbrowser.open(w)"]
)
def test_readers_and_our_own_writers_are_left_alone(line: str) -> None:
    assert not list(bypasses(line))
