"""What is imported before anything is done: nothing heavy with the package, and nothing but ours for the help of commands."""

from __future__ import annotations

import json
from typing import Any

LOADED = """
import json, sys, time
def others():
    "Packages that are loaded, but for Python's own, ours, and what the environment's .pth files load."
    names = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"nnunet_ssl"}
    return {name for name in names if not name.startswith(("__", "_distutils_hack"))}
before = others()
"""
HELP = """
import contextlib, io
from importlib.metadata import entry_points
found = {}
for command in sorted(entry_points(group="console_scripts"), key=lambda e: e.name):
    if command.value.startswith("nnunet_ssl."):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            command.load()(["--help"])
        assert printed.getvalue().startswith("usage: " + command.name), command
        found[command.name] = sorted(others() - before)
print(json.dumps({"loaded": found, "seconds": time.process_time()}))
"""


def answer(run_command: Any, code: str) -> Any:
    return json.loads(run_command(["python", "-c", LOADED + code]).stdout)


def test_nothing_heavy_comes_with_the_package(run_command):
    assert answer(run_command, "import nnunet_ssl; print(json.dumps(sorted(others() - before)))") == []


def test_the_help_of_no_command_imports_a_library(run_command):
    """torch alone takes two seconds. The limit is that of one command, for all of them together."""
    told = answer(run_command, HELP)
    assert len(told["loaded"]) >= 9
    assert {command: names for command, names in told["loaded"].items() if names} == {}
    assert told["seconds"] < 1.5  # of the CPU


def test_no_logger_is_imported_before_it_is_asked_for(run_command):
    """nnU-Net itself imports wandb where it is installed."""
    code = 'import nnunet_ssl.integration.logger; print(json.dumps(sorted(others() & {"tensorboard", "mlflow"})))'
    assert answer(run_command, code) == []
