"""Names for content: payload keys, row keys and fingerprints.  A name never depends on a path or on a time.

All keys are BLAKE2b with a 16-byte digest; the ``person`` field of BLAKE2b separates the domains, so that the
same bytes as an image and as a feature vector have different keys.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16
BLOCK = 4096  # rows of which the bytes are copied at once: so few that the next ones take the same memory
Keys = NDArray[np.uint8]  # [n, 16]


def payload_key(kind: str, payload: bytes) -> bytes:
    """16 bytes that name a stored payload: the encoded bytes, never the decoded pixels."""
    return hashlib.blake2b(payload, digest_size=KEY_BYTES, person=kind.encode()[:16]).digest()


def keys_of_rows(person: bytes, rows: NDArray[Any]) -> Keys:
    """Keys [n, 16] of rows of one length, by the bytes of an array [n, ...]: those that ``payload_key`` would give.

    Half of the time that one call a row takes goes into reading its arguments, so a hash that has begun is copied.
    """
    raw = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    began = hashlib.blake2b(digest_size=KEY_BYTES, person=person)
    found = np.empty((len(raw), KEY_BYTES), np.uint8)
    for first in range(0, len(raw), BLOCK):
        block = raw[first : first + BLOCK]
        digests = b"".join(_digests(began, block.tobytes(), raw.shape[1]))
        found[first : first + BLOCK] = np.frombuffer(digests, np.uint8).reshape(len(block), KEY_BYTES)
    return found


def _digests(began: Any, raw: bytes, width: int) -> Iterator[bytes]:
    """The digest of every ``width`` bytes."""
    copy = began.copy
    for at in range(0, len(raw), width):
        one = copy()
        one.update(raw[at : at + width])
        yield one.digest()


def row_key(payload: bytes, label: int | None) -> bytes:
    """16 bytes that name (payload key, label); a row without a label is not a row labelled 0."""
    tail = b"" if label is None else struct.pack("<q", label)
    return hashlib.blake2b(payload + tail, digest_size=KEY_BYTES, person=b"influence.row").digest()


def row_keys(payloads: Keys, labels: NDArray[Any]) -> Keys:
    """Row keys [n, 16] of payload keys [n, 16] and labels: classes int64 [n], numbers float64 [n], or int8 [n, L]."""
    n, classes = len(labels), labels.ndim == 1 and labels.dtype.kind in "iu"
    head = b"" if classes else b"number" if labels.ndim == 1 else b"labels"  # a number's bits are some class's too
    kind = "<i8" if classes else "<f8" if labels.ndim == 1 else "i1"
    tails = np.ascontiguousarray(labels, kind).reshape(n, -1).view(np.uint8)
    heads = np.broadcast_to(np.frombuffer(head, np.uint8), (n, len(head)))
    return keys_of_rows(b"influence.row", np.concatenate([payloads, heads, tails], axis=1))


def stack(keys: list[bytes]) -> Keys:
    """Keys [n, 16] from a list of 16-byte strings."""
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)


def hex_of(keys: Keys) -> list[str]:
    """Each of keys [n, 16] as hexadecimal digits."""
    digits, width = np.ascontiguousarray(keys).tobytes().hex(), 2 * keys.shape[1]
    return [digits[at : at + width] for at in range(0, len(digits), width)]


def digest_of_sorted(keys: Keys) -> str:
    """Hex name of a multiset of keys [n, 16]: the same in whatever order the rows stand."""
    joined = taken(keys, key_order(keys))
    return hashlib.blake2b(joined.data, digest_size=KEY_BYTES, person=b"influence.set").hexdigest()


def taken(rows: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
    """``rows[index]`` of an array [n, ...] in one piece, each row copied at once and not value by value."""
    return np.take(rows, index, axis=0)


def key_order(keys: Keys) -> NDArray[np.int64]:
    """Indices that sort keys [n, w] as byte strings, equal ones as they stand: no row's place in a file decides."""
    order, alike = nearly_ordered(_word(keys, 0))
    if len(alike):
        order[alike] = _in_order(keys, order[alike])
    return order


def nearly_ordered(words: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices that sort numbers [n], which are lost, but for those at some places, which are as long as they stand.

    The places, ascending, are those of numbers that are equal but for their last bits: runs of them, each of which
    stands where it has to, with its indices ascending.  A number gives up as many bits as an index has, and the two are
    sorted as one: nothing is looked up all over the memory, which takes longer a row the more rows there are.

    >>> order, alike = nearly_ordered(np.array([9 << 60, 7, 1 << 60, 6], np.uint64))
    >>> order.tolist(), alike.tolist()
    ([1, 3, 2, 0], [0, 1])
    """
    bits = np.uint64(max(1, (len(words) - 1).bit_length()))
    words >>= bits
    words <<= bits
    words |= np.arange(len(words), dtype=np.uint64)
    words.sort()
    heads = words >> bits
    same = heads[1:] == heads[:-1]
    alike = np.zeros(0, np.int64)
    if bool(same.any()):
        alike = np.flatnonzero(np.append(same, False) | np.append(False, same))
    words &= (np.uint64(1) << bits) - np.uint64(1)
    return words.view(np.int64), alike


def words_of(keys: Keys) -> list[NDArray[np.uint64]]:
    """Keys [n, w] as numbers [n], the first of which weighs most: their order is that of the keys' bytes."""
    return [_word(keys, at) for at in range(0, keys.shape[1], 8)]


def unique(keys: Keys) -> NDArray[np.int64]:
    """Indices of the first occurrence of every distinct key, in order."""
    order, alike = nearly_ordered(_word(keys, 0))
    if not len(alike):
        return np.arange(len(keys), dtype=np.int64)
    some = _in_order(keys, order[alike])
    ordered = taken(keys, some)
    again = some[1:][(ordered[1:] == ordered[:-1]).all(axis=1)]  # equal keys stand as they stood: the first one first
    first = np.ones(len(keys), dtype=bool)
    first[again] = False
    return np.flatnonzero(first)


def _in_order(keys: Keys, some: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some rows by their keys, equal ones as they stand."""
    return some[np.lexsort(tuple(reversed(words_of(taken(keys, some)))))]


def _word(keys: Keys, at: int) -> NDArray[np.uint64]:
    """Eight bytes of every key as a number [n]; big-endian numbers are in the order of their bytes."""
    part = keys[:, at : at + 8]
    if part.shape[1] < 8 or part.strides[1] != 1:
        part = np.zeros((len(keys), 8), np.uint8)
        part[:, : keys.shape[1] - at] = keys[:, at : at + 8]
    return part.view(">u8")[:, 0].astype(np.uint64)


def digest_in_order(keys: Keys) -> str:
    """Hex name of a sequence of keys [n, 16]: another where the rows stand in another order."""
    joined = np.ascontiguousarray(keys).tobytes()
    return hashlib.blake2b(joined, digest_size=KEY_BYTES, person=b"influence.order").hexdigest()


def parse_json(raw: bytes | str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text that may be anybody's; ValueError for all that is none, too deep nesting included."""
    try:
        return json.loads(raw, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: one value, one text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(kind: str, revision: int, **content: Any) -> str:
    """Hex name of everything that changes a number beyond rounding.

    ``revision`` is the revision of the algorithm behind ``kind``: raise it when the numbers change, never
    with the version of the tool.
    """
    return fingerprint_of_text([canonical_json({"kind": kind, "revision": revision, **content}).encode()])


def fingerprint_of_text(parts: Iterable[bytes]) -> str:
    """``fingerprint`` of content whose canonical JSON is written part by part, where all of it at once is too large."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=b"influence.fp")
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
