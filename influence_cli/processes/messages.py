"""What the processes of a run hand each other, as bytes: plain values, arrays, and records of this package.

A message is the length of a JSON text, the text, and the bytes of the arrays that the text speaks of.  Reading one runs
no code that it names, as reading a pickle would.  Records are dataclasses, named tuples and jobs of this package, which
are made without a call and given their fields; errors are those of ``influence_cli.errors`` and of the system.  A
function can be named where it is marked with ``may_be_sent``, and no other.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from types import FunctionType
from typing import Any, TypeVar

from influence_cli.errors import InfluenceError

OURS = ["influence_cli"]  # packages whose records may be sent; tests add their own
SENDABLE = "__may_be_sent__"
LENGTH = 8  # bytes of the text's length
NUMBERS = "biufcSUMm"  # kinds of NumPy's types that arrays may have: no objects
KINDS = (
    *("list", "tuple", "set", "frozenset", "dict", "bytes", "path", "array", "number", "tensor"),
    *("error", "oserror", "failure", "partial", "name", "record"),
)

F = TypeVar("F", bound=Callable[..., Any])


class BadMessage(ValueError):
    """A message that cannot be read, or a value that cannot be sent."""


def may_be_sent(made: F) -> F:
    """Mark a function, or a class that is no dataclass, as one that a message may name."""
    setattr(made, SENDABLE, made)  # itself, so that what derives from a marked class is not marked
    return made


def packed(value: Any) -> bytes:
    """A value as a message.

    Raises:
        BadMessage: there is something in it that no message holds.

    >>> import numpy as np
    >>> unpacked(packed({"a": (1, np.array([0.5, np.nan]))}))
    {'a': (1, array([0.5, nan]))}
    """
    buffers: list[bytes] = []
    text = json.dumps(_Writer(buffers).plain(value)).encode()
    return b"".join([len(text).to_bytes(LENGTH, "little"), text, *buffers])


def unpacked(message: bytes) -> Any:
    """The value of a message.

    Raises:
        BadMessage: it is none, or names something that may not be sent.
    """
    try:
        length = int.from_bytes(message[:LENGTH], "little")
        text = json.loads(message[LENGTH : LENGTH + length])
        return _Reader(memoryview(message)[LENGTH + length :]).value(text)
    except BadMessage:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError, RecursionError) as error:
        raise BadMessage(f"a message of another process cannot be read ({type(error).__name__}: {error})") from error


class _Writer:
    """Values as JSON; what is not JSON's own is a list that begins with a letter."""

    def __init__(self, buffers: list[bytes]) -> None:
        self.buffers = buffers

    def plain(self, value: Any) -> Any:
        """A value, its arrays among the buffers."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) in (list, tuple, set, frozenset):
            return [type(value).__name__, *map(self.plain, value)]
        if isinstance(value, Mapping):
            return ["dict", *([self.plain(k), self.plain(v)] for k, v in value.items())]
        if isinstance(value, bytes):
            return ["bytes", self._kept(value)]
        if isinstance(value, PurePath):
            return ["path", str(value)]
        if isinstance(value, BaseException):
            return self._error(value)
        if type(value).__module__ == "numpy":  # which commands that share nothing never import
            return self._array(value)
        return self._tensor(value) if hasattr(value, "untyped_storage") else self._record(value)

    def _array(self, value: Any) -> Any:
        import numpy as np

        if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in NUMBERS:
            raise BadMessage(f"{type(value).__name__} of {getattr(value, 'dtype', 'NumPy')} cannot be sent")
        kind = "array" if isinstance(value, np.ndarray) else "number"
        return [kind, value.dtype.str, list(value.shape), self._kept(value.tobytes())]

    def _kept(self, content: bytes) -> int:
        self.buffers.append(content)
        return len(content)

    def _tensor(self, value: Any) -> Any:
        import torch

        flat = value.detach().cpu().contiguous().reshape(-1)
        kept = self._kept(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        return ["tensor", str(value.dtype).removeprefix("torch."), list(value.shape), kept]

    def _error(self, error: BaseException) -> Any:
        notes = list(getattr(error, "__notes__", ()))
        if isinstance(error, InfluenceError):
            fields = {k: self.plain(v) for k, v in vars(error).items() if k != "__notes__"}
            return ["error", _name(type(error)), fields, notes]
        if isinstance(error, OSError) and error.errno is not None:
            file = None if error.filename is None else str(error.filename)
            return ["oserror", error.errno, error.strerror, file, notes]
        name = type(error).__name__ if type(error) in (MemoryError, RuntimeError) else "RuntimeError"
        return ["failure", name, str(error), notes]

    def _record(self, value: Any) -> Any:
        if isinstance(value, functools.partial):
            return ["partial", self.plain(value.func), self.plain(value.args), self.plain(value.keywords)]
        if isinstance(value, FunctionType | type):
            return ["name", _name(value)]
        fields = _state(value)
        return ["record", _name(type(value)), *([name, self.plain(part)] for name, part in fields.items())]


class _Reader:
    """The values of JSON that ``_Writer`` has written, with the buffers that follow it."""

    def __init__(self, buffers: memoryview) -> None:
        self.buffers, self.at = buffers, 0

    def value(self, plain: Any) -> Any:
        """A value, its arrays taken from the buffers in their order."""
        if not isinstance(plain, list):
            if isinstance(plain, dict):
                raise BadMessage("a message of another process holds an object of JSON")
            return plain
        kind, *rest = plain
        if kind not in KINDS:
            raise BadMessage(f"a message of another process holds {kind!r}")
        return getattr(self, f"_{kind}")(*rest)

    def _list(self, *parts: Any) -> list[Any]:
        return [self.value(part) for part in parts]

    def _tuple(self, *parts: Any) -> tuple[Any, ...]:
        return tuple(self._list(*parts))

    def _set(self, *parts: Any) -> set[Any]:
        return set(self._list(*parts))

    def _frozenset(self, *parts: Any) -> frozenset[Any]:
        return frozenset(self._list(*parts))

    def _dict(self, *pairs: Any) -> dict[Any, Any]:
        return {self.value(k): self.value(v) for k, v in pairs}

    def _bytes(self, count: int) -> bytes:
        found = bytes(self.buffers[self.at : self.at + count])
        if count < 0 or len(found) != count:
            raise BadMessage("a message of another process is cut short")
        self.at += count
        return found

    def _path(self, text: str) -> Any:
        return Path(text)

    def _array(self, dtype: str, shape: list[int], count: int) -> Any:
        import numpy as np

        kind = np.dtype(dtype)
        if kind.kind not in NUMBERS or math.prod(shape) * kind.itemsize != count:
            raise BadMessage("a message of another process holds an array of another size than it says")
        return np.frombuffer(bytearray(self._bytes(count)), kind).reshape(shape)

    def _number(self, dtype: str, shape: list[int], count: int) -> Any:
        return self._array(dtype, shape, count)[()]

    def _tensor(self, dtype: str, shape: list[int], count: int) -> Any:
        import torch

        kind = getattr(torch, dtype)
        if not isinstance(kind, torch.dtype) or math.prod(shape) * kind.itemsize != count:
            raise BadMessage("a message of another process holds a tensor of another size than it says")
        if not count:  # torch takes no empty buffer
            return torch.zeros(shape, dtype=kind)
        return torch.frombuffer(bytearray(self._bytes(count)), dtype=kind).reshape(shape)

    def _error(self, name: str, fields: dict[str, Any], notes: list[str]) -> InfluenceError:
        found = _found(name)
        if not (isinstance(found, type) and issubclass(found, InfluenceError)):
            raise BadMessage(f"a message of another process names {name!r} as an error")
        error = found.__new__(found, str(fields.get("what")))
        for field, part in fields.items():
            setattr(error, field, self.value(part))
        return _noted(error, notes)

    def _oserror(self, number: int, said: str, file: str | None, notes: list[str]) -> OSError:
        return _noted(OSError(number, said) if file is None else OSError(number, said, file), notes)

    def _failure(self, name: str, said: str, notes: list[str]) -> Exception:
        return _noted(MemoryError(said) if name == "MemoryError" else RuntimeError(said), notes)

    def _partial(self, function: Any, arguments: Any, keywords: Any) -> Any:
        made = self.value(function)
        return functools.partial(made, *self.value(arguments), **self.value(keywords))

    def _name(self, name: str) -> Any:
        found = _found(name)
        if not _is_marked(found):
            raise BadMessage(f"a message of another process names {name!r}, which is not to be sent")
        return found

    def _record(self, name: str, *fields: Any) -> Any:
        kind = _found(name)
        if not (isinstance(kind, type) and _may_be_made(kind)):
            raise BadMessage(f"a message of another process names {name!r}, which is no record")
        parts = {field: self.value(part) for field, part in fields}
        if issubclass(kind, tuple):
            return tuple.__new__(kind, parts.values())
        made = object.__new__(kind)
        for field, part in parts.items():
            object.__setattr__(made, field, part)
        return made


def _state(value: Any) -> dict[str, Any]:
    """The fields of a record by name.  Raises BadMessage: it is none."""
    kind = type(value)
    if not _may_be_made(kind):
        raise BadMessage(f"{kind.__module__}.{kind.__qualname__} cannot be sent to another process")
    if isinstance(value, tuple):
        return dict(zip(kind._fields, value, strict=True))  # type: ignore[attr-defined]
    if dataclasses.is_dataclass(kind):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(kind)}
    return value.__getstate__() or {}


def _may_be_made(kind: type) -> bool:
    ours = _is_ours(kind.__module__)
    named = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return ours and (dataclasses.is_dataclass(kind) or named or any(SENDABLE in vars(k) for k in kind.__mro__))


def _is_marked(found: Any) -> bool:
    return getattr(found, "__dict__", {}).get(SENDABLE) is found


def _is_ours(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in OURS)


def _name(made: Any) -> str:
    if not _is_ours(made.__module__) or "<" in made.__qualname__:
        raise BadMessage(f"{made.__module__}.{made.__qualname__} cannot be sent to another process")
    return f"{made.__module__}:{made.__qualname__}"


def _found(name: str) -> Any:
    """What a message names, of this package.  Raises BadMessage: it is of no module of ours."""
    module, _, inside = name.partition(":")
    if not _is_ours(module) or not all(part.isidentifier() for part in (*module.split("."), *inside.split("."))):
        raise BadMessage(f"a message of another process names {name!r}")
    found: Any = importlib.import_module(module)
    for part in inside.split("."):
        found = vars(found)[part]
    if getattr(found, "__module__", None) != module:  # what a module has imported is not its own
        raise BadMessage(f"a message of another process names {name!r}")
    return found


def _noted(error: Any, notes: list[str]) -> Any:
    for note in notes:
        error.add_note(str(note))
    return error
