"""Notes: small JSON files that carry a checksum of their content and name, looked at whenever they are read.

    {"checksum": "<BLAKE2b-128>", "note": <plain values>}

A note that is not there, one that an earlier version wrote without a checksum, and a damaged one all mean that its
content has to be found again; only the damaged one is named and set aside.  One that is there and cannot be read is an
error.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from influence_cli.errors import StoreError
from influence_cli.events import SILENT, Listener
from influence_cli.store.files import DamagedFile, open_regular, write_json
from influence_cli.store.layout import set_aside


def write_note(path: Path, note: Any) -> None:
    """Write plain values as a note, whole or not at all."""
    write_json(path, {"checksum": _checksum(path, note), "note": note})


def _checksum(path: Path, note: Any) -> str:
    plain = json.loads(json.dumps(note))  # as it is read back
    text = json.dumps([path.name, plain], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"influence.note").hexdigest()


def check_note(path: Path) -> tuple[bool, Any]:
    """(whether it carries a checksum, plain values) of a note; those of an earlier version carry none.

    Raises:
        DamagedFile: it is not what was written.
        FileNotFoundError: there is none.
        StoreError: it is there and cannot be read.
    """
    try:
        with open_regular(path) as handle:
            raw = handle.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except (OSError, StoreError) as error:
        why = error.what if isinstance(error, StoreError) else error.strerror
        fix = "make it readable, or delete it: it is found again"
        raise StoreError(f"cannot read a note of the store ({why})", where=str(path), fix=fix) from error
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DamagedFile("it is not JSON") from error
    if not isinstance(value, dict) or not {"checksum", "note"} & set(value):
        return False, value
    if set(value) != {"checksum", "note"} or value["checksum"] != _checksum(path, value["note"]):
        raise DamagedFile("checksum differs")
    return True, value["note"]


def read_note(path: Path, listener: Listener = SILENT, again: str = "found again") -> Any:
    """Plain values of a note, or None where they have to be found again."""
    checked, value = _read(path, listener, again)
    return value if checked else None


def _read(path: Path, listener: Listener, again: str) -> tuple[bool, Any]:
    try:
        return check_note(path)
    except FileNotFoundError:
        return True, None
    except DamagedFile as error:
        set_aside(path, error, listener, again)
        return True, None


def read_revisions(path: Path, listener: Listener = SILENT) -> list[dict[str, Any]]:
    """The revisions of a model of the user's own; those that an earlier version noted without a checksum count.

    They only say under which name results are stored, and a revision counts where the model's outputs agree with it:
    a damaged one agrees with nothing or names nothing, so that results are computed again.
    """
    _, value = _read(path, listener, "found again")
    known = value if isinstance(value, list) else []
    coded = [r for r in known if isinstance(r, dict) and isinstance(r.get("code"), str)]
    return [revision for revision in coded if _is_outputs(revision.get("outputs"))]


def _is_outputs(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(logits, list) for logits in value.values()):
        return False
    return all(isinstance(v, (int, float)) or v in ("nan", "inf", "-inf") for logits in value.values() for v in logits)
