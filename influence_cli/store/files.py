"""Files that are whole or not there: atomic writes, and safetensors that carry their own checksum."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import struct
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from influence_cli.errors import StoreError, disk_full
from influence_cli.store.keys import canonical_json, parse_json

METADATA_KEY = "influence"  # exactly one: safetensors orders several keys randomly
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.EFBIG)  # the user's to put right
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}
LARGE = 1 << 26  # bytes of tensors from which a file is written without a copy of them in memory
_HEADER_BYTES = 100_000_000  # no header is longer
_UNREADABLE = (KeyError, ValueError, TypeError)  # what entries of a header that are none lead to


_told_of: dict[Path, Callable[[Path], None]] = {}  # by folder: who is told of every file that is written below it


def on_written(folder: Path, told: Callable[[Path], None]) -> None:
    """Have somebody told of every file that is written below a folder, once it has its name."""
    _told_of[folder] = told


class DamagedFile(Exception):
    """A file whose bytes are not those that were written."""


@contextlib.contextmanager
def open_regular(path: Path) -> Generator[BinaryIO]:
    """A file, open for reading; a pipe or a device in its place would be waited for, or has no end.

    Raises:
        FileNotFoundError: there is none.
        StoreError: what is there is no regular file.
        OSError: it cannot be read; the error names it, as that of a failed read by itself does not.
    """
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)  # asked once: another run may take the file away meanwhile
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        regular = False  # a link that leads to itself
    if not regular:
        raise StoreError("what is there is no regular file", where=str(path), fix="move it away")
    try:
        with open(path, "rb") as handle:
            yield handle
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _refusal(what: str, path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot {what}: {error.strerror}", where=str(path), fix="pick a writable place")


def _beside(path: Path) -> Path:
    """A hidden temporary name beside ``path``, whose folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if disk_full(error):
            raise
        raise _refusal(f"create {path.parent}", path, error) from error
    return path.with_name(f".{path.name[:40]}.{os.getpid()}.{secrets.token_hex(8)}.tmp")


@contextlib.contextmanager
def _told(temporary: Path, path: Path) -> Generator[None]:
    """Errors of writing, as they are told: a full disk and a place that cannot be written name the path."""
    try:
        yield
    except Exception as error:
        named = getattr(error, "filename", None)
        if named is not None and not str(named).startswith(str(temporary)) and str(named) != str(path):
            raise  # of another file, which was read
        if disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            raise _refusal(f"write {path}", path, error) from error
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A hidden temporary path beside ``path``; on success it is synced and renamed to ``path``."""
    temporary = _beside(path)
    _reserve(temporary, path)
    try:
        with _told(temporary, path):
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for root, told in _told_of.items():
        if path.is_relative_to(root):
            told(path)
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
        with _told(temporary, path):
            yield temporary
            try:
                os.rename(temporary, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise StoreError(f"{path} has been written by somebody else", fix="give a new place") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reserve(temporary: Path, path: Path) -> None:
    """Create the temporary file: a place that cannot be written (StoreError) is told from an error of the writer."""
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        if disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise _refusal(f"write {path}", path, error) from error


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
    if sum(array.nbytes for array in arrays.values()) < LARGE:
        write_bytes(path, save(arrays, metadata={METADATA_KEY: text}))
        return
    with replacing(path) as temporary, temporary.open("wb") as handle:
        handle.write(_header_of(arrays, text))
        for name in _file_order(arrays):
            handle.write(arrays[name].reshape(-1).view(np.uint8).data)  # no copy, which ``save`` makes two of


def _file_order(arrays: dict[str, NDArray[Any]]) -> list[str]:
    """The names as safetensors lays them out: those of the widest dtype first, so that every one is aligned."""
    return sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))


def _header_of(arrays: dict[str, NDArray[Any]], text: str) -> bytes:
    """The header of safetensors with that metadata, and the eight bytes that say how long it is."""
    called = {spelt: name for name, spelt in _DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {METADATA_KEY: text}}
    start = 0
    for name in _file_order(arrays):
        array = arrays[name]
        offsets = [start, start + array.nbytes]
        entries[name] = {"dtype": called[array.dtype.str], "shape": list(array.shape), "data_offsets": offsets}
        start = offsets[1]
    raw = json.dumps(entries).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def parsed_header(raw: bytes) -> tuple[dict[str, Any], int]:
    """The header of safetensors and the place of the first byte after it; DamagedFile where it cannot be read."""
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


def raw_header(handle: BinaryIO) -> bytes:
    """The bytes that a file of safetensors says are its header, with the eight that say so."""
    head = handle.read(8)
    length = int.from_bytes(head, "little") if len(head) == 8 else 0
    return head + handle.read(min(length, _HEADER_BYTES))


def read_header(path: Path) -> dict[str, Any]:
    """The header of safetensors, without their values; DamagedFile where it cannot be read."""
    with open_regular(path) as handle:
        return parsed_header(raw_header(handle))[0]


def _own_metadata(header: dict[str, Any]) -> dict[str, Any]:
    try:
        own: Any = parse_json(header["__metadata__"][METADATA_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile("no influence metadata") from error
    if not isinstance(own, dict):
        raise DamagedFile("no influence metadata")
    return own  # pyright: ignore[reportUnknownVariableType]


def _tensor(raw: NDArray[np.uint8], entry: dict[str, Any], start: int) -> NDArray[Any]:
    """A tensor as a view of bytes, of which those at ``start`` are the first after the header."""
    first, last = entry["data_offsets"]
    return raw[start + first : start + last].view(np.dtype(_DTYPES[entry["dtype"]])).reshape(entry["shape"])


def _tensors(raw: NDArray[np.uint8], header: dict[str, Any], start: int) -> dict[str, NDArray[Any]]:
    return {name: _tensor(raw, entry, start) for name, entry in header.items() if name != "__metadata__"}


def read_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Tensors and metadata of ``path``; DamagedFile where the file is truncated or altered."""
    with open_regular(path) as handle:
        raw = handle.read()
    header, start = parsed_header(raw)
    own = _own_metadata(header)
    try:
        tensors = _tensors(np.frombuffer(raw, np.uint8), header, start)
        intact = _checksum(tensors, own["meta"]) == own["checksum"]
    except _UNREADABLE as error:
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
    header, start = parsed_header(whole[: 8 + length].tobytes())
    try:
        tensors = _tensors(whole, header, start)
    except _UNREADABLE as error:
        raise DamagedFile(f"unreadable tensors ({error})") from error
    if verify and _checksum(tensors, meta) != _own_metadata(header).get("checksum"):
        raise DamagedFile("checksum differs")
    return tensors, meta


def read_metadata(path: Path) -> dict[str, Any]:
    """Metadata of ``path`` without its tensors; DamagedFile where they are not those of their own checksum."""
    own = _own_metadata(read_header(path))
    if _checksum({}, own.get("meta", {})) != own.get("meta_checksum"):
        raise DamagedFile("metadata checksum differs")
    return own["meta"]


def tensor_names(path: Path) -> set[str]:
    """The names of a file's tensors, by its header; DamagedFile where the file is shorter or longer than that says."""
    with open_regular(path) as handle:
        header, start = parsed_header(raw_header(handle))
        size = handle.seek(0, os.SEEK_END)
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = size == start + max(ends, default=0)
    except _UNREADABLE as error:
        raise DamagedFile(f"unreadable header ({error})") from error
    if not whole:
        raise DamagedFile(f"it has {size} bytes, and its header says {start + max(ends, default=0)}")
    return header.keys() - {"__metadata__"}


def read_tensor(path: Path, name: str) -> NDArray[Any]:
    """One tensor, read without the others and so without its checksum; DamagedFile where it is not there whole."""
    with open_regular(path) as handle:
        header, start = parsed_header(raw_header(handle))
        try:
            first, last = header[name]["data_offsets"]
            handle.seek(start + first)
            return _tensor(np.frombuffer(handle.read(last - first), np.uint8), header[name], -first)
        except _UNREADABLE as error:
            raise DamagedFile(f"no tensor {name} ({error})") from error


def file_digest(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
