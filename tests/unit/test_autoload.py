"""The hook torch calls: what it changes, what it leaves alone, and that it never raises. One fresh process per test."""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

LOOKUP = "nnunetv2.utilities.find_class_by_name"
WEIGHTS = "nnunetv2.run.load_pretrained_weights"


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A package called nnunetv2 with just the two modules the hook changes: the real one takes seconds to import."""
    for name, body in {
        "utilities/find_class_by_name.py": """
            import nested
            def recursive_find_python_class(folder, class_name, current_module, *args, **kwargs):
                return {"Known": "stock"}.get(class_name)
            """,
        "run/load_pretrained_weights.py": """
            def load_pretrained_weights(network, fname, verbose=False):
                return "stock"
            """,
    }.items():
        path = tmp_path / "nnunetv2" / name
        path.parent.mkdir(parents=True)
        path.write_text(textwrap.dedent(body))
        (path.parent / "__init__.py").touch()
    (tmp_path / "nnunetv2" / "__init__.py").touch()
    (tmp_path / "nested.py").write_text("")
    return tmp_path


@pytest.fixture
def evaluate(run_command: Run, stand_in: Path) -> Callable[[str], Any]:
    """Function that runs code in a fresh process, where `answer` is to be set, and returns the answer."""

    def run(code: str, *options: str) -> Any:
        script = stand_in / "script.py"
        script.write_text(f"{textwrap.dedent(code)}\nimport json\nprint(json.dumps(answer))\n")
        result = run_command(["python", *options, script], {"PYTHONPATH": str(stand_in)})
        assert result.stderr == ""
        return json.loads(result.stdout)

    return run


def test_only_the_standard_library_is_imported(evaluate: Callable[..., Any]) -> None:
    loaded = evaluate("import nnunet_ssl, sys; answer = sorted({name.split('.')[0] for name in sys.modules})")
    heavy = {"torch", "numpy", "nnunetv2", "batchgenerators", "timm", "scipy"}
    assert "nnunet_ssl" in loaded
    assert not heavy & set(loaded)


def test_two_functions_are_wrapped_and_look_as_before(evaluate: Callable[..., Any]) -> None:
    answer = evaluate(f"""
        import inspect, nnunet_ssl
        import {LOOKUP} as lookup, {WEIGHTS} as weights
        function = lookup.recursive_find_python_class
        answer = [
            function.nnunet_ssl, weights.load_pretrained_weights.nnunet_ssl, function.__module__,
            list(inspect.signature(function).parameters), type(lookup.__loader__).__name__,
            "def recursive_find_python_class" in inspect.getsource(lookup), lookup.__spec__.loader is lookup.__loader__,
        ]""")
    parameters = ["folder", "class_name", "current_module", "args", "kwargs"]
    assert answer == [True, True, LOOKUP, parameters, "SourceFileLoader", True, True]


def test_modules_loaded_before_are_changed_in_place(evaluate: Callable[..., Any]) -> None:
    answer = evaluate(f"""
        import sys, types
        import {LOOKUP} as lookup
        user = types.ModuleType("user")
        exec("from {LOOKUP} import recursive_find_python_class", vars(user))
        sys.modules["user"] = user
        before = user.recursive_find_python_class
        import nnunet_ssl
        answer = [before is user.recursive_find_python_class,
                  user.recursive_find_python_class is lookup.recursive_find_python_class,
                  user.recursive_find_python_class.nnunet_ssl]""")
    assert answer == [False, True, True]


def test_a_module_that_is_still_being_executed_is_changed_afterwards(
    evaluate: Callable[..., Any], stand_in: Path
) -> None:
    (stand_in / "nested.py").write_text("import nnunet_ssl")  # as nnU-Net's module imports torch, and torch calls us
    answer = evaluate(f"""
        from {LOOKUP} import recursive_find_python_class
        import wave
        answer = recursive_find_python_class.nnunet_ssl""")
    assert answer is True


def test_calling_again_changes_nothing(evaluate: Callable[..., Any]) -> None:
    answer = evaluate(f"""
        import importlib, sys, nnunet_ssl
        import {LOOKUP} as lookup
        from nnunet_ssl._autoload import autoload
        finders, function = len(sys.meta_path), lookup.recursive_find_python_class
        autoload()
        answer = [len(sys.meta_path) == finders, lookup.recursive_find_python_class is function,
                  hasattr(function.__wrapped__, "__wrapped__"),
                  importlib.reload(lookup).recursive_find_python_class.nnunet_ssl]""")
    assert answer == [True, True, False, True]


def test_stock_names_win_and_unknown_places_are_left_alone(evaluate: Callable[..., Any]) -> None:
    answer = evaluate(f"""
        import nnunet_ssl
        from {LOOKUP} import recursive_find_python_class as find
        answer = [find("f", "Known", "nnunetv2.training.nnUNetTrainer"),
                  find("f", "Unknown", current_module="nnunetv2.training.nnUNetTrainer"),
                  find("f", "SSLPreprocessor", None, base_folder="f")]""")
    assert answer == ["stock", None, None]


def test_silent_without_nnunet(run_command: Run, tmp_path: Path) -> None:
    code = f"""
        import sys
        sys.modules["nnunetv2"] = None
        import nnunet_ssl
        try:
            import {LOOKUP}
        except ModuleNotFoundError as error:
            print(error.name.partition('.')[0])"""
    result = run_command(["python", "-W", "error", "-c", textwrap.dedent(code)], cwd=tmp_path)
    assert (result.stdout.strip(), result.stderr) == ("nnunetv2", "")


def test_trouble_is_told_and_not_raised(run_command: Run, stand_in: Path) -> None:
    code = f"""
        import sys
        class Broken:
            def find_spec(self, fullname, path=None, target=None):
                if fullname == "{LOOKUP}" and not hasattr(self, "called"):
                    self.called = True
                    raise RuntimeError("broken finder")
        import nnunet_ssl
        sys.meta_path.insert(1, Broken())
        import {LOOKUP} as lookup
        print(lookup.recursive_find_python_class("f", "Known", None))"""
    command = ["python", "-W", "error", "-c", textwrap.dedent(code)]
    result = run_command(command, {"PYTHONPATH": str(stand_in)})
    assert result.stdout.strip() == "stock"
    assert "nnunet_ssl could not register with nnU-Net: RuntimeError: broken finder" in result.stderr
    assert "nnunet-ssl doctor" in result.stderr
