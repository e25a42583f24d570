"""Safetensors that carry their own checksum: written whole or not at all, read whole, mapped, or one tensor alone."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from influence_cli.store.files import DamagedFile, open_regular, replacing, write_bytes
from influence_cli.store.keys import canonical_json, parse_json

METADATA_KEY = "influence"  # exactly one: safetensors orders several keys randomly
LARGE = 1 << 26  # bytes of tensors from which a file is written without a copy of them in memory
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}
_HEADER_BYTES = 100_000_000  # no header is longer
_UNREADABLE = (KeyError, ValueError, TypeError)  # what entries of a header that are none lead to


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
    with open_regular(path) as handle:
        header, start = parsed_header(raw_header(handle))
        own = _own_metadata(header)
        meta = _verified_metadata(own)
        whole = np.frombuffer(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    try:
        tensors = _tensors(whole, header, start)
    except _UNREADABLE as error:
        raise DamagedFile(f"unreadable tensors ({error})") from error
    if verify and _checksum(tensors, meta) != own.get("checksum"):
        raise DamagedFile("checksum differs")
    return tensors, meta


def read_metadata(path: Path) -> dict[str, Any]:
    """Metadata of ``path`` without its tensors; DamagedFile where they are not those of their own checksum."""
    return _verified_metadata(_own_metadata(read_header(path)))


def _verified_metadata(own: dict[str, Any]) -> dict[str, Any]:
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
        return _read_one(handle, *parsed_header(raw_header(handle)), name)


def _read_one(handle: BinaryIO, header: dict[str, Any], start: int, name: str) -> NDArray[Any]:
    try:
        first, last = header[name]["data_offsets"]
        handle.seek(start + first)
        return _tensor(np.frombuffer(handle.read(last - first), np.uint8), header[name], -first)
    except _UNREADABLE as error:
        raise DamagedFile(f"no tensor {name} ({error})") from error


@dataclass(frozen=True, eq=False)
class Outline:
    """The header of a file of safetensors that one tensor after another is read from: parsed once, and verified."""

    raw: bytes
    header: dict[str, Any]
    size: int  # of the file, in bytes

    @classmethod
    def of(cls, path: Path) -> Outline:
        """That of ``path``; DamagedFile where its metadata are not those of their own checksum."""
        with open_regular(path) as handle:
            raw = raw_header(handle)
            size = handle.seek(0, os.SEEK_END)
        header, _ = parsed_header(raw)
        _verified_metadata(_own_metadata(header))
        return cls(raw, header, size)

    def rows(self, name: str) -> int:
        """The first number of a tensor's shape; KeyError where there is none of that name."""
        return self.header[name]["shape"][0]

    def nbytes(self, name: str) -> int:
        """How many a tensor takes; KeyError where there is none of that name."""
        first, last = self.header[name]["data_offsets"]
        return last - first

    def read(self, path: Path, name: str) -> NDArray[Any]:
        """``read_tensor``; DamagedFile where the file has another header or length by now, too."""
        with open_regular(path) as handle:
            if handle.seek(0, os.SEEK_END) != self.size:
                raise DamagedFile("it has another length than before")
            handle.seek(0)
            if handle.read(len(self.raw)) != self.raw:
                raise DamagedFile("its header is another one than before")
            return _read_one(handle, self.header, len(self.raw), name)
