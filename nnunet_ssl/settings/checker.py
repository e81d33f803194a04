"""The one checker of settings: what a block holds, against the type hints and bounds of a config dataclass.

It converts what can mean one thing alone: an int where a float is wanted, one number where one per axis is wanted, a name where
a list of names is wanted, numbers, true, false and null as text ("0.1", "False", "on", "none"). It refuses everything else, NaN
and infinity among it.

Why not pydantic or cattrs: pydantic (2.14, tried) reads plain dataclasses of other packages, bounds in
`field(metadata=...)` included. But it takes True for 1, a text for a whole number and NaN for a number; strict, it wants
an instance of the dataclass and no dict, so that every field would need validators of its own. "One per axis", messages
of one line that name the setting and what is allowed, and the words for the docs would be ours all the same. It brings a
compiled dependency, and some 0.1 s to every command, for import and schemas. cattrs (by its documentation, not tried)
calls the type, so that bool("False") is True, and knows no bounds of plain dataclasses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, NamedTuple, get_type_hints

from nnunet_ssl.nearest import nearest
from nnunet_ssl.settings.allowed import AXES, SINGLES, Allowed, Refused, parse
from nnunet_ssl.settings.bounds import Bounds, bounds_in

LONGEST = 100  # characters of a value in a message


class Checked(NamedTuple):
    """What became of a block. values: of the settings that are right; refusals: a sentence for each of the others.

    expected, found: what is allowed and what was there, by the names of those that were refused.
    """

    values: dict[str, Any]
    refusals: list[str]
    expected: dict[str, str]
    found: dict[str, Any]


def check_block(
    cls: type, block: Mapping[str, Any], axes: int = AXES, whole: bool = True, ease: int = SINGLES
) -> Checked:
    """Compare every entry of a block with the fields of the config dataclass `cls`, and convert what means one thing alone.

    axes: of the patch. whole: whether fields without a default must be there. ease: what is converted, see `Allowed.convert`.
    Raises TypeError where the dataclass itself has hints that nothing from JSON can fit.
    """
    known = rules(cls)
    checked = Checked({}, [], {}, {})
    unknown = [str(key) for key in block if key not in known]
    for name, value in block.items():
        if name in known:
            try:
                checked.values[name] = known[name].convert(value, axes, ease)
            except Refused:
                checked.refusals.append(refusal(name, known[name], value, axes))
                checked.expected[name], checked.found[name] = known[name].text(axes), value
    for name in sorted(required(cls) - set(block)) if whole else ():
        checked.refusals.append(f"{name} must be given: {known[name].text(axes)}.")
        checked.expected[name] = known[name].text(axes)
    for name in unknown:
        near = nearest(name, sorted(known))
        checked.refusals.append(f"unknown setting {shown(name)}.{f' Did you mean {near!r}?' if near else ''}")
        checked.found[name] = block.get(name)
    if unknown:
        checked.refusals.append(f"Known settings: {', '.join(sorted(known))}.")
    return checked


@cache
def rules(cls: type) -> dict[str, Allowed]:
    """What every field of a config dataclass allows, by its name. Raises TypeError for hints that say nothing of JSON."""
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for field in fields(cls):
        if field.init:
            try:
                found[field.name] = parse(hints[field.name], Bounds(**bounds_in(dict(field.metadata))))
            except TypeError as error:
                raise TypeError(f"{cls.__qualname__}.{field.name}: {error}") from error
    return found


def required(cls: type) -> set[str]:
    """The fields that have no default."""
    own = [f for f in fields(cls) if f.init]
    return {f.name for f in own if f.default is MISSING and f.default_factory is MISSING}


def refusal(name: str, allowed: Allowed, value: Any, axes: int) -> str:
    """A sentence about a value that was refused."""
    verb = "is" if allowed.is_choice else "must be"
    return f"{name} {verb} {allowed.text(axes)}, found {shown(value)}."


def shown(value: Any) -> str:
    """A value for a message, at most a line of it."""
    try:
        text = repr(value)
    except ValueError:  # whole numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
