"""Read a pickle of plain values and numeric arrays without running any of its code.

A pickle is a program for a stack machine. `pickle` runs it and calls any function that it names.
Even an unpickler that allows only NumPy's own functions creates object arrays from raw pointers, so
that a crafted file can crash or take over the process. This module uses the standard library's
`pickletools`, which only *lists* the instructions, and builds dictionaries, lists, tuples, numbers,
texts, bytes and arrays of numbers from them. No name in the file is ever looked up, imported or
called.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 1 << 30
"""Largest file to read; CIFAR-100's training part has 155 MB."""

# Meaning of the few names with which arrays and bytes are pickled, by their last part.
_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
NAMES = {
    **{f"{module}.{name}": name for module in _NUMPY for name in ("ndarray", "dtype")},
    **{f"{module}._reconstruct": "_reconstruct" for module in _NUMPY},
    **{f"{module}._frombuffer": "_frombuffer" for module in _NUMERIC},
    "_codecs.encode": "encode",
    "__builtin__.bytes": "bytes",
}
_NUMBER_TYPE = re.compile(r"[<>|=]?[biuf]\d{1,2}")
_KEYS = (str, bytes, int, float)


class PlainPickleError(ValueError):
    """The file is damaged, or requires more than plain values and numeric arrays."""


@dataclass
class _Name:
    """A name in the file: a label, never an object."""

    name: str


@dataclass
class _Unfinished:
    """An array or dtype between its creation and its state."""

    kind: str
    value: Any = None


def load_plain_pickle(data: bytes) -> Any:
    """Return the value that a pickle describes.

    Args:
        data: content of the file, of any protocol.

    Returns:
        Dictionaries, lists, tuples, numbers, texts, bytes, booleans, None, and NumPy arrays of
        booleans and numbers. Texts of Python 2 are bytes.

    Raises:
        PlainPickleError: if the file is damaged, larger than `MOST_BYTES`, or contains anything
            else.
    """
    if len(data) > MOST_BYTES:
        raise PlainPickleError(f"it has {len(data):,} bytes, more than {MOST_BYTES:,}")
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return _finished(machine.pop())
            step = _STEPS.get(opcode.name)
            if step is None:
                raise PlainPickleError(f"it has the instruction {opcode.name}")
            step(machine, argument)
    except PlainPickleError:
        raise
    except Exception as error:  # pickletools and NumPy may raise anything for a damaged file
        raise PlainPickleError(f"it is damaged ({type(error).__name__}: {error})") from None
    raise PlainPickleError("it has no end")


class _Machine:
    """The stack and the memo of one file."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def pop(self) -> Any:
        if self.marks and self.marks[-1] == len(self.stack):
            raise PlainPickleError("it is damaged (a mark where a value is needed)")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def memoize(self, key: int | None) -> None:
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def name(self, module: object, name: object) -> None:
        known = NAMES.get(f"{module}.{name}")
        if known is None:
            raise PlainPickleError(f"it asks for {module}.{name}")
        self.push(_Name(known))

    def append(self, items: list[Any]) -> None:
        _container(self.stack[-1], list).extend(map(_finished, items))

    def set_items(self, items: list[Any]) -> None:
        target = _container(self.stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _KEYS):
                raise PlainPickleError(f"it has a key of type {type(key).__name__}")
            target[key] = _finished(value)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise PlainPickleError("it calls what is no function of arrays")
        match function.name:
            case "_reconstruct":
                self.push(_Unfinished("array"))
            case "dtype":
                self.push(_Unfinished("dtype", _number_type(arguments[0])))
            case "_frombuffer":
                raw, dtype, shape, order = arguments
                self.push(_array(raw, _finished(dtype), shape, str(order)))
            case "encode" if arguments[1:] in ((), ("latin1",)):
                self.push(_container(arguments[0], str).encode("latin-1"))
            case "bytes" if not arguments:
                self.push(b"")
            case _:
                raise PlainPickleError(f"it calls {function.name}")

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, _Unfinished) or not isinstance(state, tuple):
            raise PlainPickleError("it sets the state of what is no array")
        if target.kind == "dtype":
            target.value = target.value.newbyteorder(_text(state[1]))
        else:
            _, shape, dtype, is_fortran, raw = state
            target.value = _array(raw, _finished(dtype), shape, "F" if is_fortran else "C")


def _array(raw: object, dtype: object, shape: object, order: str) -> NDArray[Any]:
    """Return an array of numbers that owns its memory."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biuf" or order not in ("C", "F"):
        raise PlainPickleError("it has an array of other things than numbers")
    lengths = [n for n in _container(shape, tuple) if isinstance(n, int) and n >= 0]
    if not isinstance(raw, bytes | bytearray) or len(lengths) != len(shape):  # type: ignore[arg-type]
        raise PlainPickleError("it has an array whose numbers are no bytes")
    if len(raw) != prod(lengths) * dtype.itemsize:
        raise PlainPickleError(f"it has an array of shape {lengths} in {len(raw):,} bytes")
    flat = np.frombuffer(raw, dtype) if raw else np.empty(0, dtype)
    return flat.reshape(lengths, order="F" if order == "F" else "C").copy()


def _number_type(text: object) -> np.dtype[Any]:
    name = _text(text)
    if _NUMBER_TYPE.fullmatch(name) is None:
        raise PlainPickleError(f"it has an array of type {name!r}")
    return np.dtype(name)


def _finished(value: Any) -> Any:
    """Return a complete value; refuse names and unfinished arrays."""
    if isinstance(value, _Unfinished):
        value = value.value
        if value is None:
            raise PlainPickleError("it has an array without content")
    if isinstance(value, _Name):
        raise PlainPickleError(f"it has {value.name} for a value")
    return value


def _container(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise PlainPickleError(f"it has {type(value).__name__} where {kind.__name__} is needed")
    return value


def _text(value: object) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(_container(value, str))


def _push(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _push_python2_text(machine: _Machine, argument: Any) -> None:
    machine.push(argument.encode("latin-1"))  # pickletools reads these bytes as Latin-1


def _tuple(machine: _Machine, count: int) -> None:
    items = [machine.pop() for _ in range(count)]
    machine.push(tuple(reversed(items)))


def _dict(machine: _Machine, items: list[Any]) -> None:
    machine.push({})
    machine.set_items(items)


def _list(machine: _Machine, items: list[Any]) -> None:
    machine.push([])
    machine.append(items)


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


def _get(machine: _Machine, key: int) -> None:
    machine.push(machine.memo[key])


Step = Callable[[_Machine, Any], object]
_VALUES = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_STEPS: dict[str, Step] = {
    **dict.fromkeys((*_VALUES, *_TEXTS, *_BYTES), _push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _push_python2_text),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.pop_to_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "LIST": lambda m, _: _list(m, m.pop_to_mark()),
    "DICT": lambda m, _: _dict(m, m.pop_to_mark()),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_to_mark())),
    **{f"TUPLE{n}": lambda m, _, n=n: _tuple(m, n) for n in (1, 2, 3)},  # type: ignore[misc]
    "APPEND": lambda m, _: m.append([m.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_to_mark()),
    "SETITEM": lambda m, _: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_to_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    "GLOBAL": lambda m, argument: m.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: _stack_global(m),
    "REDUCE": lambda m, _: m.reduce(),
    "BUILD": lambda m, _: m.build(),
}
