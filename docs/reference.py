"""The public names of nnunet_ssl as Markdown for Sphinx: signatures and docstrings, as they stand in the code.

Docstrings here are Markdown, not reStructuredText, so Sphinx' autodoc would misread them; MyST reads them as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, get_args

import nnunet_ssl

WITH_METHODS = ("Method",)  # what others derive from


def directive(kind: str, line: str, content: str, ticks: int = 4) -> str:
    """An object of Sphinx' Python domain, to be linked and found by the search."""
    fence = "`" * ticks
    return f"{fence}{{py:{kind}}} {line}\n:module: nnunet_ssl\n\n{content.strip()}\n{fence}\n"


def signature(value: Callable[..., Any]) -> str:
    """Arguments with their types, without what a caller does not type."""
    found = inspect.signature(value)
    wanted = [p for p in found.parameters.values() if p.name not in ("self", "cls")]
    return str(found.replace(parameters=wanted)).replace("'", "")


def functions(owner: Any, prefix: str, kind: str) -> Iterator[str]:
    """Public functions that a module or a class has itself, with a docstring."""
    for name, value in vars(owner).items():
        function = getattr(value, "__func__", value)
        at_home = inspect.isfunction(function) and not name.startswith("_") and function.__doc__
        if at_home and (inspect.isclass(owner) or function.__module__ == owner.__name__):
            yield directive(kind, f"{prefix}.{name}{signature(function)}", inspect.getdoc(function) or "", ticks=3)


def entry(name: str) -> str:
    """One name of `nnunet_ssl.PUBLIC`."""
    value = getattr(nnunet_ssl, name)
    text = inspect.getdoc(value) or ""
    if isinstance(value, ModuleType):
        return "\n".join([f"**`nnunet_ssl.{name}`**: {text}\n", *functions(value, name, "function")])
    if inspect.isclass(value):
        arguments = "" if issubclass(value, Exception) or name in ("Method", "SSLTrainer") else signature(value)
        members = functions(value, name, "method") if name in WITH_METHODS else ()
        return directive("class", name + arguments, "\n".join([text, "", *members]), ticks=5)
    if callable(value) and hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    if inspect.isfunction(value):
        return directive("function", name + signature(value), inspect.getdoc(value) or "")
    kind, *bounds = get_args(value)
    return directive("data", name, f"`{getattr(kind, '__name__', kind)}` with `{', '.join(map(repr, bounds))}`")


def reference() -> str:
    """All public names, in alphabetical order."""
    names = sorted(nnunet_ssl.PUBLIC, key=str.lower)
    return "\n".join(["\n## All names, from the code\n", *map(entry, names)])
