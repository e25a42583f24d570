"""Files that people may read and copy and that carry their own checksum: JSON, and safetensors of weights.

A file that says nothing of a checksum (an earlier version's, or somebody else's) is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from influence_cli.store.files import DamagedFile, write_json
from influence_cli.store.keys import canonical_json
from influence_cli.store.lfs import FIX, WHAT, is_pointer
from influence_cli.store.tensors import METADATA_KEY, parsed_header, read_header

CHECKSUM = "checksum"  # key of a JSON object: the digest of all its other keys
WEIGHTS = "weights"  # key of what weights say of themselves: the digest of their tensors
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64), **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16), **dict.fromkeys(("I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}  # fmt: skip


def checksum_of(value: dict[str, Any]) -> str:
    """Digest of a JSON object, its own checksum aside, whatever its layout and the order of its keys."""
    rest = json.loads(json.dumps({k: v for k, v in value.items() if k != CHECKSUM}))
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"influence.json").hexdigest()


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The JSON object with its checksum."""
    return {**value, CHECKSUM: checksum_of(value)}


def write_sealed_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with its checksum, whole or not at all."""
    write_json(path, sealed(value))


def parsed_object(raw: bytes | str) -> dict[str, Any]:
    """A JSON object; DamagedFile where it is none, or has a checksum and is not as it was written."""
    if is_pointer(raw.encode() if isinstance(raw, str) else raw):
        raise DamagedFile(f"{WHAT}: {FIX}")
    try:
        value = json.loads(raw if isinstance(raw, str) else raw.decode())
    except (ValueError, RecursionError) as error:
        raise DamagedFile(str(error) or "nested too deep") from error
    if not isinstance(value, dict):
        raise DamagedFile("it is no JSON object")
    if CHECKSUM in value and value[CHECKSUM] != checksum_of(value):
        raise DamagedFile("its checksum differs")
    return value


def weights_metadata(about: dict[str, Any], digest: str) -> dict[str, str]:
    """Metadata of safetensors of weights, under the one key: ``about`` them, their digest, and a checksum of both."""
    text = json.dumps(sealed({**about, WEIGHTS: digest}), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {METADATA_KEY: text}


def read_weights_metadata(path: Path, digest: str | None = None) -> dict[str, Any] | None:
    """What safetensors of weights say of themselves, verified; None where they are not ours.

    ``digest`` is that of their tensors, where it is known.

    Raises:
        DamagedFile: the file is not as it was written.
    """
    own = (read_header(path).get("__metadata__") or {}).get(METADATA_KEY)
    if own is None:
        return None
    about = parsed_object(own)
    if (WEIGHTS in about) != (CHECKSUM in about):
        raise DamagedFile("its metadata are incomplete")
    if WEIGHTS in about and about[WEIGHTS] != (digest or tensor_digest((path,))):
        raise DamagedFile("its tensors are not those that were written")
    return about


def tensor_digest(paths: Sequence[Path]) -> str:
    """Hex digest of tensors' names, dtypes, shapes and values, not of metadata or sharding; or DamagedFile."""
    return digest_of_entries([entry for path in paths for entry in _entries(path.read_bytes(), path.name)])


def serialized_digest(raw: bytes) -> str:
    """``tensor_digest`` of one file's bytes."""
    return digest_of_entries(_entries(raw, "the serialized tensors"))


def _entries(raw: bytes, name: str) -> list[str]:
    """One line for every tensor: name, dtype, shape and a digest of its values."""
    entries: list[str] = []
    header, start = parsed_header(raw)
    view = memoryview(raw)
    for tensor, (info, first, last) in _placed(header, len(raw) - start, name).items():
        entries.append(tensor_entry(tensor, info["dtype"], info["shape"], view[start + first : start + last]))
    return entries


def _placed(header: dict[str, Any], size: int, name: str) -> dict[str, tuple[dict[str, Any], int, int]]:
    """Each tensor's entry and place; DamagedFile unless tensors fill the ``size`` bytes after the header, each once."""
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


def tensor_entry(name: str, dtype: str, shape: list[int], values: bytes | memoryview) -> str:
    """What a digest takes of one tensor: its name, dtype and shape, and a digest of its values in order."""
    return canonical_json([name, dtype, shape, hashlib.blake2b(values, digest_size=16).hexdigest()])


def digest_of_entries(entries: list[str]) -> str:
    """Hex digest of tensors, in whatever order."""
    return hashlib.blake2b("".join(sorted(entries)).encode(), digest_size=16, person=b"influence.w").hexdigest()
