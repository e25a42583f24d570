"""Names for content: payload keys, row keys and fingerprints.  A name never depends on a path or on a time.

All keys are BLAKE2b with a 16-byte digest; the ``person`` field of BLAKE2b separates the domains, so that the
same bytes as an image and as a feature vector have different keys.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16
Keys = NDArray[np.uint8]  # [n, 16]


def payload_key(kind: str, payload: bytes) -> bytes:
    """16 bytes that name a stored payload: the encoded bytes, never the decoded pixels."""
    return hashlib.blake2b(payload, digest_size=KEY_BYTES, person=kind.encode()[:16]).digest()


def row_key(payload: bytes, label: int | None) -> bytes:
    """16 bytes that name (payload key, label); a row without a label is not a row labelled 0."""
    tail = b"" if label is None else struct.pack("<q", label)
    return hashlib.blake2b(payload + tail, digest_size=KEY_BYTES, person=b"influence.row").digest()


def row_keys(payloads: Keys, labels: NDArray[Any]) -> Keys:
    """Row keys [n, 16] of payload keys [n, 16] and labels: classes int64 [n], numbers float64 [n], or int8 [n, L]."""
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        return stack([row_key(p.tobytes(), int(y)) for p, y in zip(payloads, labels, strict=True)])
    head = b"number" if labels.ndim == 1 else b"labels"  # the bits of a number are those of some class too
    tails = [head + y.tobytes() for y in np.ascontiguousarray(labels, "<f8" if labels.ndim == 1 else "i1")]
    named = (p.tobytes() + tail for p, tail in zip(payloads, tails, strict=True))
    return stack([hashlib.blake2b(row, digest_size=KEY_BYTES, person=b"influence.row").digest() for row in named])


def stack(keys: list[bytes]) -> Keys:
    """Keys [n, 16] from a list of 16-byte strings."""
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)


def digest_of_sorted(keys: Keys) -> str:
    """Hex name of a multiset of keys [n, 16]: the same in whatever order the rows stand."""
    joined = b"".join(sorted(k.tobytes() for k in keys))
    return hashlib.blake2b(joined, digest_size=KEY_BYTES, person=b"influence.set").hexdigest()


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
    text = canonical_json({"kind": kind, "revision": revision, **content})
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES, person=b"influence.fp").hexdigest()
