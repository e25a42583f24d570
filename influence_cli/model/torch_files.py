"""What a torch file holds, read as data and without torch: its weights, and what they are known by.

``torch.save`` writes a zip of one pickle and of the tensors' storages.  The pickle is read by an unpickler that makes
nothing but dicts, lists, numbers, texts and tensors' places: whatever else it asks for becomes an empty stand-in, so
that nothing in the file can run.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influence_cli.errors import ModelError
from influence_cli.model.plain_data import PLAIN
from influence_cli.store.files import DamagedFile
from influence_cli.store.sealed import digest_of_entries, tensor_entry
from influence_cli.store.zips import damage_told

# where training scripts put the state dict, best first; EMA weights only where there is nothing else
NESTED = ("state_dict", "model_state_dict", "model", "net", "params", "state_dict_ema", "model_ema", "ema")
EXTRA = "_extra_state"  # last part of the name of what a module keeps beside its tensors
_DTYPES = {  # of storages and of dtypes as torch names them: what safetensors calls them, and bytes a value
    "Double": ("F64", 8), "float64": ("F64", 8), "Float": ("F32", 4), "float32": ("F32", 4), "Half": ("F16", 2),
    "float16": ("F16", 2), "BFloat16": ("BF16", 2), "bfloat16": ("BF16", 2), "Long": ("I64", 8), "int64": ("I64", 8),
    "Int": ("I32", 4), "int32": ("I32", 4), "Short": ("I16", 2), "int16": ("I16", 2), "Char": ("I8", 1),
    "int8": ("I8", 1), "Byte": ("U8", 1), "uint8": ("U8", 1), "Bool": ("BOOL", 1), "bool": ("BOOL", 1),
    "ComplexFloat": ("C64", 8), "complex64": ("C64", 8), "ComplexDouble": ("C128", 16), "complex128": ("C128", 16),
    "uint16": ("U16", 2), "uint32": ("U32", 4), "uint64": ("U64", 8), "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
}  # fmt: skip
_BYTES = dict(_DTYPES.values())
_TENSORS = {  # torch's own modules of which it makes tensors, and what is in them; it refuses there what it must
    "torch", "torch._utils", "torch._tensor", "torch._C", "torch.storage", "torch.serialization", "torch.nn.parameter",
}  # fmt: skip
SHOWN = 5  # names in a message
_UNITS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}  # numbers of so many bytes, which are only copied
_MOST = 4  # times the file's size that its tensors may have in all: views may repeat values without end
_UNREADABLE = (
    DamagedFile, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, TypeError,
    IndexError, AttributeError, NotImplementedError, RecursionError, MemoryError, OverflowError, ImportError,
    RuntimeError,
)  # fmt: skip


class NotUnderstood(ValueError):
    """A torch file whose tensors are held in a way that only torch knows."""


@dataclass(frozen=True)
class Place:
    """Where a tensor's values are: in which storage, from which value on, and how far apart."""

    storage: str
    dtype: str
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class TorchFile:
    """What is known of a torch file without torch."""

    digest: str | None  # of the state dict: that of safetensors with the same tensors; None where only torch can tell
    keys: tuple[str, ...] | None  # that lead to the state dict; None where there is none
    code: tuple[str, ...]  # full names of what it asks for that is not plain data
    script: bool  # whether it is a TorchScript program, which holds its code beside its weights
    module: tuple[Any, ...] = ()  # keys that lead to a whole module, where there is no state dict

    def refusal(self, name: str, where: str) -> ModelError | None:
        """Why the file is not read, and how to save its weights without what it holds; None where it can be."""
        if self.script:
            what = "the checkpoint is a TorchScript program, which holds code"
            fix = f"save its weights: torch.save(torch.jit.load({name!r}).state_dict(), 'weights.pt')"
            return ModelError(what, where=where, fix=fix)
        return None if not self.code else refused_code(self.code, self.keys, name, where, self.module)


def refused_code(
    code: Sequence[str], keys: tuple[str, ...] | None, name: str, where: str, module: tuple[Any, ...] = ()
) -> ModelError:
    """The error for a file that asks for code, by its names."""
    inner = "".join(f"[{key!r}]" for key in (module if keys is None else keys))
    inner += ".state_dict()" if keys is None else ""
    some = ", ".join(code[:SHOWN]) + (f" and {len(code) - SHOWN} more" if len(code) > SHOWN else "")
    what = f"the checkpoint cannot be read as data: it needs {some}, which is code and is never run"
    fix = "where you trust the file, save its weights alone: "
    fix += f"torch.save(torch.load({name!r}, weights_only=False){inner}, 'weights.pt')"
    return ModelError(what, where=where, fix=fix)


class _Dict(dict[Any, Any]):
    """A dict that may have attributes, as an OrderedDict of weights has."""


class _StandIn:
    """In the place of any object that is not plain data: it takes all that a pickle does to it, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _StandIn:
        return object.__new__(cls)

    is_module = False  # whether it stands for a torch module

    def __setstate__(self, state: Any) -> None:
        self.is_module = isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()

    def _nothing(self, *_: Any, **__: Any) -> _StandIn:
        return self

    append = extend = add = __setitem__ = __call__ = _nothing  # type: ignore[assignment]


class _Reader(pickle.Unpickler):
    """An unpickler without code; ``code`` are the names of what it was asked for that is not plain data."""

    def __init__(self, raw: io.BytesIO) -> None:
        super().__init__(raw)
        self.code: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in, but for what tensors and dicts are made with."""
        known = _MADE.get((module, name))
        if known is not None:
            return known
        kind = name.removesuffix("Storage")
        if module in ("torch", "torch.storage") and (kind in _DTYPES or kind in ("Untyped", "Typed")):
            return _DTYPES.get(kind, ("U8", 1))[0]
        if module not in _TENSORS and f"{module}.{name}" not in PLAIN:
            self.code.append(f"{module}.{name}")
        return _StandIn

    def persistent_load(self, pid: Any) -> tuple[str, Any]:
        """A storage: its name in the file, and what its values are."""
        _, kind, name, *_ = pid
        return str(name), kind


def _tensor(storage: tuple[str, Any], first: int, shape: Any, strides: Any, *more: Any) -> Place:
    """A tensor; the last of ``more`` says of views that are not the values themselves (conjugates, negatives)."""
    if any(isinstance(m, dict) and any(m.values()) for m in more[2:]):
        raise NotUnderstood("a view of other values")
    return Place(storage[0], str(storage[1]), int(first), tuple(map(int, shape)), tuple(map(int, strides)))


def _tensor_of_dtype(
    storage: tuple[str, Any], first: int, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *more: Any
) -> Place:
    return _tensor((storage[0], dtype), first, shape, strides, grad, hooks, *more)


def _first(value: Any, *_: Any) -> Any:
    return value


def _of_type(make: Callable[..., Any], _: Any, arguments: Any, *__: Any) -> Any:
    return make(*arguments)


_MADE: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): _Dict,
    ("collections", "defaultdict"): lambda *_: _Dict(),
}


def _root(archive: zipfile.ZipFile) -> str:
    """The folder in the archive that everything is in."""
    (pickled,) = (n for n in archive.namelist() if n.endswith("data.pkl") and n.count("/") <= 1)
    return pickled.removesuffix("data.pkl")


def find_state_dict(loaded: Any, tensor: type, depth: int = 0) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """The first dict of tensors by name and the keys that lead to it: at the top or under the usual keys, three deep.

    What modules keep in it beside tensors is left out.
    """
    if not isinstance(loaded, dict) or depth > 3:
        return None
    named = {k: v for k, v in loaded.items() if not (isinstance(k, str) and k.rpartition(".")[2] == EXTRA)}
    if named and all(isinstance(k, str) and isinstance(v, tensor) for k, v in named.items()):
        return named, ()
    for key in NESTED:
        found = find_state_dict(loaded.get(key), tensor, depth + 1)
        if found is not None:
            return found[0], (key, *found[1])
    return None


def _find_module(loaded: Any, depth: int = 0) -> tuple[Any, ...] | None:
    """The keys that lead to a whole module, the usual ones first, three deep; of what is no dict, none."""
    if isinstance(loaded, _StandIn):
        return () if loaded.is_module else None
    if not isinstance(loaded, dict) or depth > 3:
        return None
    for key in sorted(loaded, key=lambda k: NESTED.index(k) if k in NESTED else len(NESTED)):
        inner = _find_module(loaded[key], depth + 1)
        if inner is not None:
            return (key, *inner)
    return None


def read_torch_file(path: Path) -> TorchFile | None:
    """What a torch file holds; None where it is none that can be read so, such as one of before torch 1.6."""
    try:
        with damage_told(), zipfile.ZipFile(path) as archive:
            root = _root(archive)
            reader = _Reader(io.BytesIO(archive.read(f"{root}data.pkl")))
            loaded, names = reader.load(), set(archive.namelist())
            found = find_state_dict(loaded, Place)
            module = _find_module(loaded) or () if found is None else ()
            code, script = tuple(dict.fromkeys(reader.code)), f"{root}constants.pkl" in names
            digest = None
            if found is not None and not script:
                digest = _digest(archive, root, found[0], _MOST * path.stat().st_size)
            return TorchFile(digest, None if found is None else found[1], code, script, module)
    except _UNREADABLE:
        return None


def _digest(archive: zipfile.ZipFile, root: str, state: dict[str, Place], most: int) -> str | None:
    """The digest of tensors, read a storage at a time; None where their views are far larger than the file."""
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        return None
    by_storage: dict[str, list[str]] = {}
    for name, place in state.items():
        by_storage.setdefault(place.storage, []).append(name)
    if sum(math.prod(p.shape) * _BYTES[p.dtype] for p in state.values()) > most:
        return None
    entries: list[str] = []
    for storage, names in by_storage.items():
        raw = archive.read(f"{root}data/{storage}")
        entries += [tensor_entry(n, state[n].dtype, list(state[n].shape), _values(raw, state[n])) for n in names]
    return digest_of_entries(entries)


def _values(raw: bytes, place: Place) -> bytes:
    """A tensor's values in order, from its storage's bytes."""
    size = _BYTES[place.dtype]
    if 0 in place.shape:
        return b""
    last = place.first + sum((n - 1) * s for n, s in zip(place.shape, place.strides, strict=True))
    if place.first < 0 or min((*place.strides, 0)) < 0 or (last + 1) * size > len(raw):
        raise ValueError("a tensor lies outside of its storage")
    values = np.frombuffer(raw, dtype=np.dtype(_UNITS[size]), count=len(raw) // size)[place.first :]
    view = np.lib.stride_tricks.as_strided(values, place.shape, [s * size for s in place.strides])
    return np.ascontiguousarray(view).tobytes()
