"""Look through a checkpoint's pickle without running it, before torch's safe loader does.

torch's loader runs no foreign code, but it can be made to allocate what a few bytes declare, or to recurse until the
interpreter dies. Here the pickle's operations are followed with placeholders instead of objects.
"""

from __future__ import annotations

import _compat_pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import IO, Any

import torch

MOST_AXES = 32  # of a tensor; numpy knows no more, and weights have six at most
DEPTH = 64  # nested tuples; hashing one of some 100,000 levels ends the interpreter
CALLABLES = frozenset(
    {
        "_codecs.encode",
        "builtins.complex",
        "builtins.set",
        "collections.OrderedDict",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "torch.Size",
        "torch.device",
        "torch.serialization._get_layout",
        "torch.nn.parameter.Parameter",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
    }
)
BYTES_PER_VALUE = {
    **{f"torch.{name}Storage": size for name, size in [("Double", 8), ("Float", 4), ("Half", 2), ("BFloat16", 2)]},
    **{f"torch.{name}Storage": size for name, size in [("Long", 8), ("Int", 4), ("Short", 2), ("Char", 1)]},
    **{f"torch.{name}Storage": size for name, size in [("Byte", 1), ("Bool", 1), ("ComplexDouble", 16)]},
    **{"torch.ComplexFloatStorage": 8, "torch.storage.UntypedStorage": 1},
}


class ScreenError(Exception):
    """A pickle must not be opened: `forbidden` is the name it would have imported, if that is the reason."""

    def __init__(self, reason: str, forbidden: str | None = None) -> None:
        super().__init__(reason)
        self.forbidden = forbidden


class DamagedError(Exception):
    """A file's container or pickle cannot be followed to its end."""


@dataclass(frozen=True, slots=True)
class _Name:
    """Stands for something imported."""

    path: str


@dataclass(frozen=True, slots=True)
class _Tuple:
    depth: int
    items: tuple[Any, ...]  # of long ones, which mean nothing here, none
    length: int


@dataclass(frozen=True, slots=True)
class _Storage:
    bytes_per_value: int
    values: int


@dataclass(frozen=True, slots=True)
class _Made:
    """Stands for what a call gave."""

    by: str


EMPTY = _Tuple(1, (), 0)
OTHER = object()  # stands for whatever need not be known: numbers with a point, lists, dictionaries, tensors
MARK = object()
PLAIN_PUSHES = frozenset({"NONE", "NEWTRUE", "NEWFALSE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "BINFLOAT"})
INTEGERS = frozenset({"BININT", "BININT1", "BININT2", "LONG1"})
STRINGS = frozenset({"BINUNICODE", "SHORT_BINSTRING"})
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
POPS = {"APPEND": 1, "SETITEM": 2}
TENSORS = frozenset({f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")})
# What torch writes a state for. Given one, a tensor would take another storage and shape, unseen.
STATEFUL = frozenset({"collections.OrderedDict", "numpy.dtype"})


@dataclass
class PickleScreen:
    """Follows pickles; `bytes_of` tells how many bytes the file holds for a storage's key."""

    bytes_of: Callable[[str], int]
    allowed_bytes: int  # of all storages together
    exact: bool = False  # whether a storage must be as large as `bytes_of` says, and not just fit in there
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, int] = field(default_factory=dict)  # key -> bytes

    def screen(self, file: IO[bytes]) -> Any:
        """Follow one pickle from where `file` is to its end, and give what stands for its value.

        Raises ScreenError for a pickle that must not be opened, DamagedError for one that is cut or garbled.
        """
        self.stack, self.memo = [], {}
        try:
            for opcode, argument, _ in pickletools.genops(file):
                self._follow(opcode.name, argument)
        except (IndexError, KeyError) as error:
            raise DamagedError("the operations of its pickle do not fit together") from error
        except (ValueError, OverflowError) as error:
            raise DamagedError(str(error)[:200]) from error
        return self.stack[-1] if self.stack else OTHER

    def _follow(self, name: str, argument: Any) -> None:  # noqa: C901  # one branch per kind of opcode
        stack = self.stack
        if name in PLAIN_PUSHES:
            stack.append(OTHER)
        elif name in INTEGERS or name in STRINGS:
            stack.append(argument)
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in TUPLES:
            items = stack[-TUPLES[name] :]
            del stack[-TUPLES[name] :]
            stack.append(_tuple(items))
        elif name == "TUPLE":
            stack.append(_tuple(self._since_mark()))
        elif name == "EMPTY_TUPLE":
            stack.append(EMPTY)
        elif name in ("APPENDS", "SETITEMS"):
            self._since_mark()
        elif name in POPS:
            del stack[-POPS[name] :]
        elif name == "GLOBAL":
            stack.append(_imported(argument))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack[-1] = self._check_call(stack[-1], arguments)
        elif name == "BUILD":
            stack.pop()
            if not isinstance(stack[-1], _Made) or stack[-1].by not in STATEFUL:
                raise ScreenError("gives a state to something that has none, which torch never writes")
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "STACK_GLOBAL":
            parts = [str(part) for part in stack[-2:]]
            raise ScreenError("imports by an operation torch never writes", ".".join(parts))
        elif name not in ("PROTO", "STOP"):
            raise ScreenError(f"uses the pickle operation {name}, which torch never writes")

    def _since_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def _check_call(self, function: Any, arguments: Any) -> _Made:
        path = function.path if isinstance(function, _Name) else ""
        if path not in CALLABLES:
            raise ScreenError(f"calls {path or 'something it did not import'}", path or None)
        items = arguments.items if isinstance(arguments, _Tuple) else ()
        if path == "_codecs.encode" and (len(items) != 2 or items[1] != "latin1"):
            raise ScreenError("encodes text in a way torch never writes")
        if path in TENSORS:
            self._check_tensor(items)
        return _Made(path)

    def _check_tensor(self, items: tuple[Any, ...]) -> None:
        """Raise ScreenError unless a tensor lies within its storage: torch would make the storage larger."""
        storage, offset, sizes, strides = items[:4] if len(items) > 3 else (None,) * 4
        if not (isinstance(storage, _Storage) and isinstance(sizes, _Tuple) and isinstance(strides, _Tuple)):
            raise ScreenError("describes a tensor in a way torch never writes")
        if max(sizes.length, strides.length) > MOST_AXES:
            raise ScreenError(f"declares a tensor with {sizes.length:,} axes, more than {MOST_AXES}")
        numbers = (offset, *sizes.items, *strides.items)
        if not all(type(number) is int and number >= 0 for number in numbers) or sizes.length != strides.length:
            raise ScreenError("describes a tensor in a way torch never writes")
        if prod(sizes.items) > 1 and prod(sizes.items) * storage.bytes_per_value > self.allowed_bytes:
            raise ScreenError(f"declares a tensor of shape {sizes.items}, more values than the file holds")
        values = storage.values
        if len(items) > 6 and isinstance(items[6], _Name):  # the third way to write one: bytes, and a type of their own
            dtype = getattr(torch, items[6].path.removeprefix("torch."), None)
            values = values * storage.bytes_per_value // dtype.itemsize if isinstance(dtype, torch.dtype) else 0
        last = offset + sum((n - 1) * step for n, step in zip(sizes.items, strides.items, strict=True))
        if prod(sizes.items) > 0 and last >= values:
            raise ScreenError(f"declares a tensor of shape {sizes.items} that lies outside of its storage")

    def _storage(self, identity: Any) -> _Storage:
        items = identity.items if isinstance(identity, _Tuple) else ()
        if len(items) < 5 or items[0] != "storage" or not isinstance(items[1], _Name):
            raise ScreenError("refers to something that is no tensor's storage")
        size, key, numel = BYTES_PER_VALUE.get(items[1].path), items[2], items[4]
        if size is None:
            raise ScreenError(f"holds values of type {items[1].path}, expected floating point or whole numbers")
        if not isinstance(key, str) or not isinstance(numel, int) or isinstance(numel, bool) or numel < 0:
            raise ScreenError("describes a tensor's storage in a way torch never writes")
        held = self.bytes_of(key)
        if numel * size > held:
            raise ScreenError(f"declares {numel * size:,} bytes for a tensor, of which the file holds {held:,}")
        if self.exact and numel * size < held:  # torch reads such a file or does not, depending on how it is asked to
            raise ScreenError(f"holds {held:,} bytes for a tensor that declares {numel * size:,}")
        self.storages[key] = max(numel * size, self.storages.get(key, 0))
        view = items[5] if len(items) > 5 else OTHER
        for number in view.items[1:] if isinstance(view, _Tuple) else ():
            if not isinstance(number, int) or not 0 <= number <= numel:
                raise ScreenError("describes a part of a tensor's storage that lies outside of it")
        return _Storage(size, numel)

    def check_total(self) -> None:
        """Raise ScreenError when all storages together are larger than the file; storages are counted once."""
        total = sum(self.storages.values())
        if total > self.allowed_bytes:
            raise ScreenError(f"declares {total:,} bytes of tensors, but is only {self.allowed_bytes:,} bytes long")


def _tuple(items: list[Any]) -> _Tuple:
    if any(item is MARK for item in items):
        raise ValueError("its operations do not fit together")
    depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
    if depth > DEPTH:
        raise ScreenError(f"nests tuples more than {DEPTH} levels deep")
    return _Tuple(depth, tuple(items) if len(items) <= MOST_AXES else (), len(items))


def _imported(argument: str) -> _Name:
    module, _, name = argument.partition(" ")
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    path = f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
    is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
    if path not in CALLABLES and path not in BYTES_PER_VALUE and not is_dtype:
        raise ScreenError(f"holds {path}", path)
    return _Name(path)
