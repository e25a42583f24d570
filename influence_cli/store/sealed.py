"""Files that people may read and copy and that carry their own checksum: JSON, and safetensors of weights.

A file that says nothing of a checksum (an earlier version's, or somebody else's) is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from influence_cli.store.files import METADATA_KEY, DamagedFile, read_header, tensor_digest, write_json

CHECKSUM = "checksum"  # key of a JSON object: the digest of all its other keys
WEIGHTS = "weights"  # key of what weights say of themselves: the digest of their tensors


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
    """A JSON object, verified on its checksum where it has one.

    Raises:
        DamagedFile: it is no JSON object, or is not as it was written.
    """
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
