"""Every field of every config dataclass of the package takes what its hint says and nothing else."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import math
import pkgutil
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

import nnunet_ssl
from nnunet_ssl.errors import SettingsError
from nnunet_ssl.methods import get_method, method_names
from nnunet_ssl.settings.blocks import read_config
from nnunet_ssl.settings.bounds import Bounds, Count, Name, PerAxis
from nnunet_ssl.settings.checker import rules


def config_classes() -> list[type]:
    """All dataclasses of the package that settings are read into, by looking into every module that may hold one."""
    found: dict[type, None] = {}
    for module in pkgutil.walk_packages(nnunet_ssl.__path__, "nnunet_ssl."):
        if module.name.startswith(("nnunet_ssl.methods", "nnunet_ssl.settings.blocks", "nnunet_ssl.finetune")):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and is_dataclass(value) and value.__name__.endswith(("Config", "Settings")):
                    found[value] = None
    found.update(dict.fromkeys(get_method(name).Config for name in method_names()))
    return sorted(found, key=lambda cls: cls.__qualname__)


def leaves(hint: Any, limits: Bounds = Bounds()) -> Iterator[tuple[Any, Bounds, bool]]:  # noqa: B008
    """(type, limits, whether it stands in a list) of every plain type in a hint, read apart from the checker."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        own = [a for a in arguments[1:] if isinstance(a, Bounds)]
        yield from leaves(arguments[0], own[-1] if own else limits)
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from leaves(argument, limits)
    elif origin is tuple:
        for argument in arguments:
            if argument is not Ellipsis:
                yield from ((t, b, True) for t, b, _ in leaves(argument, limits))
    else:
        yield hint, limits, False


FIELDS = [(cls, f.name) for cls in config_classes() for f in fields(cls)]
IDS = [f"{cls.__name__}.{name}" for cls, name in FIELDS]


def hint_of(cls: type, name: str) -> Any:
    return get_type_hints(cls, include_extras=True)[name]


def default_of(cls: type, name: str) -> Any:
    own = next(f for f in fields(cls) if f.name == name)
    return own.default if own.default is not MISSING else own.default_factory()


def is_refused(cls: type, name: str, value: Any) -> bool:
    """Whether a value is refused by a message that names the setting, what was found and what is allowed."""
    try:
        read_config(cls, {name: value}, "here")
        return False
    except SettingsError as caught:
        error = caught
    said = str(error)
    assert f"here: {name} is " in said or f"here: {name} must be " in said
    assert ", found " in said
    assert rules(cls)[name].text(3) in said
    assert set(error.found) == {name} == set(error.expected)
    return True


def test_the_walk_finds_the_blocks_and_every_task():
    names = {cls.__name__ for cls in config_classes()}
    assert {"PretrainSettings", "FinetuneSettings", "MAEConfig", "VoCoConfig"} <= names
    assert len(FIELDS) > 100


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=IDS)
def test_hints_of_ours_say_all_there_is_to_say(cls, name):
    for kind, limits, _ in leaves(hint_of(cls, name)):
        if kind in (int, float, str) and cls.__module__.startswith("nnunet_ssl."):
            what = "choices (Literal) or a least length" if kind is str else "bounds"
            assert limits, f"{cls.__name__}.{name}: a {kind.__name__} without {what}, see nnunet_ssl/settings/bounds.py"


def test_no_config_checks_single_settings_by_hand():
    for cls in config_classes():
        if cls.__module__.startswith("nnunet_ssl.") and "__post_init__" in vars(cls):
            called = {n.func.id for n in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls.__post_init__))))
                      if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}  # fmt: skip
            assert called.isdisjoint({"isinstance", "type"}), f"{cls.__name__}: types belong into the hints"


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=IDS)
def test_wrong_types_are_refused(cls, name):
    plain = {t for t, _, _ in leaves(hint_of(cls, name))}
    assert is_refused(cls, name, {"an": "object"})
    assert is_refused(cls, name, [[1, 2], [3]])
    for word in ("many", "0.5.1", "[64, 64, 64]", "0x10", "\u0661"):
        assert is_refused(cls, name, word) == (str not in plain)
    assert is_refused(cls, name, "") or bool not in plain
    assert is_refused(cls, name, True) == (bool not in plain)
    assert is_refused(cls, name, None) == (type(None) not in plain)
    if float not in plain:
        assert is_refused(cls, name, 1.5)
        assert is_refused(cls, name, 64.0)
    if plain.isdisjoint({int, float}) and not any(get_origin(t) is Literal for t in plain):
        assert is_refused(cls, name, 1)


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=IDS)
def test_what_is_no_finite_number_is_refused(cls, name):
    takes_text = str in {t for t, _, _ in leaves(hint_of(cls, name))}
    for number in (math.nan, math.inf, -math.inf, 10**400, -(10**400), 2**63):
        if number == 2**63 and float in {t for t, _, _ in leaves(hint_of(cls, name))}:
            continue  # a float like any other
        assert is_refused(cls, name, number), number
        assert is_refused(cls, name, [number] * 3)
    for word in ("nan", "NaN", "inf", "-Infinity", "1e999"):
        assert is_refused(cls, name, word) or takes_text


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=IDS)
def test_numbers_out_of_bounds_are_refused_and_those_at_them_are_not(cls, name):
    for kind, limits, in_list in leaves(hint_of(cls, name)):
        step = 1 if kind is int else 1e-9
        outside = {
            "ge": lambda x, step=step: x - step,
            "gt": lambda x: x,
            "le": lambda x, step=step: x + step,
            "lt": lambda x: x,
        }
        if kind not in (int, float):
            continue
        for key, beyond in outside.items():
            limit = getattr(limits, key)
            if limit is not None:
                value = kind(beyond(limit))
                assert is_refused(cls, name, [value] * 3 if in_list else value), (key, value)
                if key in ("ge", "le") and not in_list:
                    assert rules(cls)[name].convert(kind(limit)) == limit


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=IDS)
def test_defaults_survive_json(cls, name):
    default = default_of(cls, name)
    again = getattr(read_config(cls, json.loads(json.dumps({name: default})), "here"), name)
    assert again == default
    assert type(again) is type(default)
    whole = read_config(cls, json.loads(json.dumps(asdict(cls()))), "here")
    assert whole == cls()


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=IDS)
def test_what_can_mean_one_thing_alone_is_converted(cls, name):
    plain = [t for t, _, _ in leaves(hint_of(cls, name))]
    if bool in plain:
        for word, meant in {"False": False, "no": False, "OFF": False, "true": True, "Yes": True, "oN": True}.items():
            assert getattr(read_config(cls, {name: word}, "here"), name) is meant
    if type(None) in plain and str not in plain:
        assert getattr(read_config(cls, {name: "None"}, "here"), name) is None
    default = default_of(cls, name)
    if float in plain and isinstance(default, float):
        value = getattr(read_config(cls, {name: str(default)}, "here"), name)
        assert value == default
        assert type(value) is float


@dataclass(frozen=True)
class ListsConfig:
    """All kinds of lists."""

    crop: PerAxis | None = None
    block: Count | PerAxis = 16
    pair: tuple[int, int] = (1, 2)
    names: tuple[Name, ...] = ()


def test_per_axis_and_lists_of_names():
    def read(axes: int = 3, **block: Any) -> ListsConfig:
        return read_config(ListsConfig, block, "here", axes)

    assert read(crop=64).crop == (64, 64, 64)
    assert read(2, crop="64").crop == (64, 64)
    assert read(block="8").block == 8
    assert read(block=[8, 8, 8]).block == (8, 8, 8)
    assert read(names="Dataset001_A").names == ("Dataset001_A",)
    for wrong in ({"crop": [64, 64]}, {"pair": 1}, {"pair": [1, 2, 3]}, {"names": [""]}, {"names": 1}, {"crop": 0}):
        with pytest.raises(SettingsError, match=f"here: {next(iter(wrong))} must be"):
            read(**wrong)


@dataclass(frozen=True)
class TheirBound:
    """As those of annotated-types."""

    gt: float


@dataclass(frozen=True)
class TheirConfig:
    """A config of a package that knows nothing of ours."""

    size: int = field(metadata={"ge": 2, "le": 9})  # has no default
    noise: Annotated[float, TheirBound(gt=0)] = 1.0
    mode: Literal["a", "b", 3] = "a"
    weights: dict[str, float] = field(default_factory=dict, metadata={"ge": 0})
    free: Any = None
    made: int = field(default=0, init=False)


def test_configs_of_others():
    config = read_config(TheirConfig, {"size": 2, "noise": 2, "mode": "3", "weights": {"x": 1}}, "here")
    assert (config.noise, config.mode, config.weights) == (2.0, 3, {"x": 1.0})
    wrong = {"size": 10, "noise": 0, "mode": "c", "weights": {"x": -1}, "made": 1, "nois": 2}
    with pytest.raises(SettingsError) as caught:
        read_config(TheirConfig, wrong, "here")
    assert str(caught.value) == (
        "here: size must be a whole number from 2 to 9, found 10. noise must be a number > 0, found 0. "
        "mode is one of a, b, 3, found 'c'. weights must be an object, each value a number >= 0, found {'x': -1}. "
        "unknown setting 'made'. Did you mean 'mode'? unknown setting 'nois'. Did you mean 'noise'? "
        "Known settings: free, mode, noise, size, weights."
    )
    with pytest.raises(SettingsError, match="here: size must be given: a whole number from 2 to 9"):
        read_config(TheirConfig, {}, "here")


def test_a_hint_that_json_cannot_fill_is_the_programmers_mistake():
    @dataclass(frozen=True)
    class Config:
        when: complex = 0j

    with pytest.raises(TypeError, match=r"Config\.when: .*complex.* is no hint of a setting"):
        read_config(Config, {}, "here")
