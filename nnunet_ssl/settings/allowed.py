"""What one type hint of a setting allows: in words, and of a value that was found. `checker` says why it is ours."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from nnunet_ssl.settings.bounds import Bounds, bounds_in

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NOTHING = ("none", "null")
INTEGER = re.compile(r"[+-]?[0-9]{1,300}", re.ASCII)
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
UNBOUNDED = Bounds()
AS_IS, TEXTS, SINGLES = range(3)  # what is converted
LARGEST = 2**63  # beyond which whole numbers fit no tensor, seed or file
AXES = 3  # of a patch, where nobody says
PLAIN = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "null": "null",
    "any": "anything",
}


class Refused(Exception):
    """A value is not what a hint allows."""


@dataclass(frozen=True)
class Allowed:
    """What one hint allows. kind: "bool", "int", "float", "str", "null", "any", "choice", "either", "list", "row", "object".

    parts: the alternatives of "either", the entries of a "row" (of fixed length), the entry of a "list" or "object".
    """

    kind: str
    bounds: Bounds = UNBOUNDED
    parts: tuple[Allowed, ...] = ()
    choices: tuple[Any, ...] = ()
    container: type = tuple

    def text(self, axes: int | None = None) -> str:
        """In words, to stand behind "must be"."""
        inner = [part.text(axes) for part in self.parts]
        if self.kind in PLAIN:
            is_text = self.kind == "str" and self.bounds.what is None
            more = self.bounds.text() + " that is not empty" * (is_text and bool(self.bounds.min_length))
            return (self.bounds.what or PLAIN[self.kind]) + more
        if self.kind == "choice":
            quoted = [f'"{c}"' if isinstance(c, str) else str(c) for c in self.choices]
            return " or ".join(quoted) if len(quoted) < 3 else f"one of {', '.join(map(str, self.choices))}"
        if self.kind == "either":
            return ", or ".join(t for t in inner if not any(other.startswith(f"{t}, or one per") for other in inner))
        if self.kind == "list":
            if self.bounds.per_axis:
                return f"{inner[0]}, or one per axis{f', {axes} of them' if axes else ''}"
            return f"a list{_least(self.bounds)}, each {inner[0]}"
        if self.kind == "row":
            same = len(set(inner)) == 1
            return f"a list of {len(inner)}, each {inner[0]}" if same else f"a list of {', '.join(inner)}"
        return f"an object, each value {inner[0]}"

    @property
    def is_choice(self) -> bool:
        """Whether it is said by naming all there is."""
        return self.kind in ("bool", "choice") or (
            self.kind == "either" and all(p.is_choice or p.kind == "null" for p in self.parts)
        )

    def convert(self, value: Any, axes: int = AXES, ease: int = SINGLES) -> Any:
        """The value as the hint's type; raises Refused. ease: AS_IS, or TEXTS are read, or SINGLES stand for lists as well."""
        if self.kind == "either":
            return self._convert_either(value, axes, ease)
        if self.kind in ("list", "row", "object"):
            return self._convert_many(value, axes, ease)
        if isinstance(value, str) and ease and self.kind not in ("str", "choice", "any"):
            value = _read(self.kind, value)
        if self.kind == "choice":
            return self._choose(value, ease)
        if self.kind in ("int", "float"):
            return self._convert_number(value)
        fits = {
            "any": True,
            "null": value is None,
            "bool": isinstance(value, bool),
            "str": isinstance(value, str) and len(value.strip()) >= (self.bounds.min_length or 0),
        }
        return value if fits[self.kind] else _refuse()

    def _convert_number(self, value: Any) -> Any:
        if type(value) is not int and not (self.kind == "float" and type(value) is float):
            return _refuse()
        try:
            number = float(value) if self.kind == "float" else value
        except OverflowError:
            return _refuse()
        finite = isfinite(number) if self.kind == "float" else abs(number) < LARGEST
        return number if finite and self.bounds.hold(number) else _refuse()

    def _convert_either(self, value: Any, axes: int, ease: int) -> Any:
        """What the first of the alternatives makes of it, where it is that already; else what all make of it that can."""
        for level in range(ease + 1):
            results = []
            for part in self.parts:
                with suppress(Refused):
                    results.append(part.convert(value, axes, level))
            if results and (level == AS_IS or all(type(r) is type(results[0]) and r == results[0] for r in results)):
                return results[0]
        return _refuse()

    def _convert_many(self, value: Any, axes: int, ease: int) -> Any:
        if self.kind == "object":
            if not isinstance(value, Mapping):
                return _refuse()
            return {key: self.parts[0].convert(entry, axes, ease) for key, entry in value.items()}
        if not isinstance(value, (list, tuple)):
            value = self._as_list(value, axes) if ease == SINGLES else _refuse()
        if self.kind == "row":
            if len(value) != len(self.parts):
                return _refuse()
            return self.container(p.convert(entry, axes, ease) for p, entry in zip(self.parts, value, strict=True))
        if len(value) < (self.bounds.min_length or 0) or (self.bounds.per_axis and len(value) != axes):
            return _refuse()
        return self.container(self.parts[0].convert(entry, axes, ease) for entry in value)

    def _as_list(self, value: Any, axes: int) -> Sequence[Any]:
        if self.kind == "list" and self.bounds.per_axis:
            return (value,) * axes
        if self.kind == "list" and self.parts[0].kind == "str" and isinstance(value, str):
            return (value,)
        return _refuse()

    def _choose(self, value: Any, ease: int) -> Any:
        read = [value] + [_read(kind, value) for kind in ("bool", "int", "float") if ease and isinstance(value, str)]
        fitting = [c for c in self.choices if any(type(c) is type(r) and c == r for r in read)]
        return fitting[0] if len(fitting) == 1 else _refuse()


def _refuse() -> Any:
    raise Refused


def _least(bounds: Bounds) -> str:
    return "" if bounds.min_length is None else f" of at least {bounds.min_length}"


def _read(kind: str, text: str) -> Any:
    """A text as a value of this kind where it clearly is one, else the text, which is then refused."""
    if kind == "bool":
        return WORDS.get(text.lower(), text)
    if kind == "null":
        return None if text.lower() in NOTHING else text
    if kind == "int":
        return int(text) if INTEGER.fullmatch(text) else text
    return float(text) if NUMBER.fullmatch(text) else text


def parse(hint: Any, bounds: Bounds = UNBOUNDED) -> Allowed:
    """What a type hint allows; raises TypeError for hints of what JSON cannot hold."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        for annotation in arguments[1:]:
            bounds = replace(bounds, **bounds_in(annotation))
        return parse(arguments[0], bounds)
    if hint is None or hint is type(None):
        return Allowed("null")
    if hint is Any:
        return Allowed("any")
    if hint in (bool, int, float, str):
        return Allowed(hint.__name__, bounds)
    if origin is Literal:
        return Allowed("choice", choices=arguments)
    if origin in (Union, types.UnionType):
        return Allowed("either", parts=tuple(parse(a, bounds) for a in arguments))
    numbers = replace(bounds, min_length=None, per_axis=False)  # go on to the entries
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return Allowed("row", bounds, tuple(parse(a, numbers) for a in arguments))
    if origin in (tuple, list, Sequence) or hint in (tuple, list):
        container = list if list in (origin, hint) else tuple
        return Allowed("list", bounds, (parse(arguments[0] if arguments else Any, numbers),), container=container)
    if origin in (dict, Mapping) or hint is dict:
        return Allowed("object", bounds, (parse(arguments[1] if arguments else Any, numbers),))
    raise TypeError(
        f"{hint} is no hint of a setting. Settings are what JSON can hold, in int, float, bool, str, tuple, ..."
    )
