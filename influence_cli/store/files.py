"""Files that are whole or not there: atomic writes, and safetensors that carry their own checksum."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import struct
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from influence_cli.errors import StoreError, disk_full
from influence_cli.store.keys import canonical_json
from influence_cli.store.regular import open_regular

METADATA_KEY = "influence"  # exactly one: safetensors orders several keys randomly
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.EFBIG)  # the user's to put right
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64), **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16), **dict.fromkeys(("I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}  # fmt: skip
_HEADER_BYTES = 100_000_000  # no header is longer


class DamagedFile(Exception):
    """A file whose bytes are not those that were written."""


def _beside(path: Path) -> Path:
    """A hidden temporary name beside ``path``, whose folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if disk_full(error):
            raise
        raise StoreError(
            f"cannot create {path.parent}: {error.strerror}", where=str(path), fix="pick a writable place"
        ) from error
    return path.with_name(f".{path.name[:40]}.{os.getpid()}.{secrets.token_hex(8)}.tmp")


def _said(error: Exception, temporary: Path, path: Path) -> Exception:
    """An error of writing, as it is told: a full disk and a place that cannot be written name the path."""
    named = getattr(error, "filename", None)
    if named is not None and not str(named).startswith(str(temporary)) and str(named) != str(path):
        return error  # of another file, which was read
    if disk_full(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return StoreError(f"cannot write {path}: {error.strerror}", where=str(path), fix="pick a writable place")
    return error


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A hidden temporary path beside ``path``; on success it is synced and renamed to ``path``."""
    temporary = _beside(path)
    _reserve(temporary, path)
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except Exception as error:
        told = _said(error, temporary, path)
        if told is error:
            raise
        raise told from error
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Generator[Path]:
    """A hidden name beside ``path`` for a new folder; on success it is renamed to ``path``, where nothing may be."""
    temporary = _beside(path)
    try:
        yield temporary
        try:
            os.rename(temporary, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise StoreError(f"{path} has been written by somebody else", fix="give a new place") from error
    except Exception as error:
        told = _said(error, temporary, path)
        if told is error:
            raise
        raise told from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reserve(temporary: Path, path: Path) -> None:
    """Create the temporary file, so that a place that cannot be written is told from an error of the writer.

    Raises:
        StoreError: nothing can be written there (a full disk is no such place).
    """
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        if disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise StoreError(
            f"cannot write {path}: {error.strerror}", where=str(path), fix="pick a writable place"
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write indented, key-sorted JSON to ``path`` whole or not at all."""
    write_bytes(path, as_json(value))


def as_json(value: Any) -> bytes:
    """Indented, key-sorted JSON."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _checksum(tensors: dict[str, NDArray[Any]], meta: dict[str, Any]) -> str:
    digest = hashlib.blake2b(canonical_json(meta).encode(), digest_size=16)
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(canonical_json([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)  # no copy: it may be a mapped file
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
    """Write safetensors with ``meta`` under one metadata key, with checksums of it and of the whole."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    text = canonical_json({"checksum": _checksum(arrays, meta), "meta": meta, "meta_checksum": _checksum({}, meta)})
    write_bytes(path, save(arrays, metadata={METADATA_KEY: text}))


def _header(raw: bytes) -> tuple[dict[str, Any], int]:
    try:
        (length,) = struct.unpack("<Q", raw[:8])
        found: Any = json.loads(raw[8 : 8 + length])
    except (struct.error, ValueError, RecursionError) as error:
        raise DamagedFile(f"unreadable header ({error})") from error
    if not isinstance(found, dict):
        raise DamagedFile("unreadable header (no JSON object)")
    header: dict[str, Any] = found  # pyright: ignore[reportUnknownVariableType]
    texts: Any = header.get("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(v, str) for v in texts.values()):  # pyright: ignore[reportUnknownVariableType]
        raise DamagedFile("unreadable header (metadata are no texts)")
    return header, 8 + length


def read_header(path: Path) -> dict[str, Any]:
    """The header of safetensors, without their values.

    Raises:
        DamagedFile: it cannot be read.
    """
    with open_regular(path) as handle:
        head = handle.read(8)
        return _header(head + handle.read(min(int.from_bytes(head, "little"), _HEADER_BYTES)))[0]


def _own_metadata(header: dict[str, Any]) -> dict[str, Any]:
    try:
        own: Any = json.loads(header["__metadata__"][METADATA_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile("no influence metadata") from error
    if not isinstance(own, dict):
        raise DamagedFile("no influence metadata")
    return cast("dict[str, Any]", own)


def read_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Tensors and metadata of ``path``.

    Raises:
        DamagedFile: the file is truncated or altered.
    """
    with open_regular(path) as handle:
        raw = handle.read()
    header, start = _header(raw)
    own = _own_metadata(header)
    tensors: dict[str, NDArray[Any]] = {}
    try:
        for name, info in header.items():
            if name != "__metadata__":
                first, last = info["data_offsets"]
                flat = np.frombuffer(raw[start + first : start + last], dtype=_DTYPES[info["dtype"]])
                tensors[name] = flat.reshape(info["shape"])
        intact = _checksum(tensors, own["meta"]) == own["checksum"]
    except (KeyError, ValueError, TypeError) as error:
        raise DamagedFile(f"unreadable tensors ({error})") from error
    if not intact:
        raise DamagedFile("checksum differs")
    return tensors, own["meta"]


def map_tensors(path: Path, verify: bool = True) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Tensors of ``path`` as read-only views of the file, which are in memory as far as they are used; and metadata.

    Without ``verify`` the values' checksum is not looked at, so that no value is read; that of the metadata is.

    Raises:
        DamagedFile: the file is truncated or altered.
    """
    meta = read_metadata(path)
    whole = np.memmap(path, dtype=np.uint8, mode="r")
    (length,) = struct.unpack("<Q", whole[:8].tobytes())
    header, start = _header(whole[: 8 + length].tobytes())
    tensors: dict[str, NDArray[Any]] = {}
    try:
        for name, info in header.items():
            if name != "__metadata__":
                first, last = info["data_offsets"]
                flat = whole[start + first : start + last].view(np.dtype(_DTYPES[info["dtype"]]))
                tensors[name] = flat.reshape(info["shape"])
    except (KeyError, ValueError, TypeError) as error:
        raise DamagedFile(f"unreadable tensors ({error})") from error
    if verify and _checksum(tensors, meta) != _own_metadata(header).get("checksum"):
        raise DamagedFile("checksum differs")
    return tensors, meta


def read_metadata(path: Path) -> dict[str, Any]:
    """Metadata of ``path`` without its tensors, checked on its own checksum.

    Raises:
        DamagedFile: the header is truncated or altered.
    """
    with open_regular(path) as handle:
        head = handle.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        own = _own_metadata(_header(head + handle.read(min(length, 100_000_000)))[0])
    if _checksum({}, own.get("meta", {})) != own.get("meta_checksum"):
        raise DamagedFile("metadata checksum differs")
    return own["meta"]


def read_tensor(path: Path, name: str) -> NDArray[Any]:
    """One tensor of ``path`` without reading the others, and so without its checksum.

    Raises:
        DamagedFile: it is not there whole.
    """
    with open_regular(path) as handle:
        head = handle.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        header, start = _header(head + handle.read(min(length, 100_000_000)))
        try:
            first, last = header[name]["data_offsets"]
            handle.seek(start + first)
            flat = np.frombuffer(handle.read(last - first), dtype=_DTYPES[header[name]["dtype"]])
            return flat.reshape(header[name]["shape"])
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedFile(f"no tensor {name} ({error})") from error


def tensor_digest(paths: Sequence[Path]) -> str:
    """Hex digest of foreign safetensors' names, dtypes, shapes and values; metadata and sharding are left out.

    Raises:
        DamagedFile: a file is not safetensors, or is truncated.
    """
    return _digest([entry for path in paths for entry in _entries(path.read_bytes(), path.name)])


def serialized_digest(raw: bytes) -> str:
    """``tensor_digest`` of one file's bytes."""
    return _digest(_entries(raw, "the serialized tensors"))


def _entries(raw: bytes, name: str) -> list[str]:
    """One line for every tensor: name, dtype, shape and a digest of its values."""
    entries: list[str] = []
    header, start = _header(raw)
    view = memoryview(raw)
    for tensor, (info, first, last) in _placed(header, len(raw) - start, name).items():
        value = hashlib.blake2b(view[start + first : start + last], digest_size=16).hexdigest()
        entries.append(canonical_json([tensor, info["dtype"], info["shape"], value]))
    return entries


def _placed(header: dict[str, Any], size: int, name: str) -> dict[str, tuple[dict[str, Any], int, int]]:
    """Each tensor's entry and place, where the tensors fill the ``size`` bytes after the header, each byte once.

    Raises:
        DamagedFile: they do not, or an entry is none.
    """
    places = {n: _place(info, n) for n, info in header.items() if n != "__metadata__"}
    end = 0
    for tensor, (_, first, last) in sorted(places.items(), key=lambda p: p[1][1:]):
        if first != end:
            raise DamagedFile(f"{name}: tensor {tensor} does not begin where the one before it ends")
        end = last
    if end != size:
        rest = "is truncated" if end > size else f"has {size - end} bytes at its end that are no tensor's"
        raise DamagedFile(f"{name} {rest}")
    return places


def _place(info: Any, tensor: str) -> tuple[dict[str, Any], int, int]:
    try:
        dtype, shape, (first, last) = info["dtype"], info["shape"], info["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (first, last, *shape)):
            raise ValueError("no whole number")
        bits = _BITS.get(dtype)
        fits = first <= last if bits is None else last - first == bits // 8 * math.prod(shape)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFile(f"the entry of tensor {tensor} cannot be read ({error})") from error
    if not fits:
        raise DamagedFile(f"tensor {tensor} has {last - first} bytes, which is not the size of {dtype} {shape}")
    return info, first, last


def _digest(entries: list[str]) -> str:
    return hashlib.blake2b("".join(sorted(entries)).encode(), digest_size=16, person=b"influence.w").hexdigest()


def file_digest(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
