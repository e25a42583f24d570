"""The file of accepted rows: one a line, each numbered and with a checksum, and a last line that says how many.

    {"id": "a", "row_key": "...", "line": 1, "checksum": "..."}
    {"lines": 1, "digest": "...", "checksum": "..."}

So a line that is lost, changed or of another file is noticed and named.  Files of before have neither numbers nor a
last line, and earlier ones no checksums: they are read, and it is said that a lost line would not be noticed.  A line
that somebody has added by hand, without a number, accepts its row too.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from influence_cli.errors import UsageError
from influence_cli.store.lfs import refuse_pointer
from influence_cli.store.remote import local
from influence_cli.store.sealed import CHECKSUM, checksum_of, sealed

_KEY = re.compile("[0-9a-f]{32}")
_FIX = "name a file that `influence curate SCORES --write-baseline FILE` made, as it made it"


@dataclass(frozen=True)
class _Line:
    """An accepted row: ``number`` is that of the line, None where it says none."""

    id: str
    key: str
    number: int | None


def baseline_of(rows: Iterable[tuple[str, str]]) -> bytes:
    """The file of rows, each by id and row key.

    >>> baseline_of([("a", "0" * 32)]).decode().count("checksum")
    2
    """
    lines = [{"id": i, "row_key": key, "line": number} for number, (i, key) in enumerate(rows, 1)]
    last = {"lines": len(lines), "digest": _digest((line["id"], line["row_key"]) for line in lines)}
    return "".join(json.dumps(sealed(line), ensure_ascii=False) + "\n" for line in (*lines, last)).encode()


def read_baseline(path: str | None) -> tuple[set[str], str | None]:
    """Row keys of the accepted rows, and what is to be said of a file that does not say how many there are.

    Raises:
        UsageError: a line is none, is missing or has changed, or an id is there twice; names the line.
    """
    if path is None:
        return set(), None
    file = local(path)
    refuse_pointer(file)
    try:
        lines, last = _lines(file.read_text(encoding="utf-8"))
        _check_whole(lines, last)
    except (OSError, ValueError, RecursionError) as error:
        what = error.strerror or error if isinstance(error, OSError) else error
        raise UsageError(f"the baseline cannot be read ({what})", where=path, fix=_FIX) from error
    said = f"{path} does not say how many lines it has, as an earlier version wrote it: a lost line is not noticed"
    return {line.key for line in lines}, said if last is None else None


def _lines(text: str) -> tuple[list[_Line], dict[str, Any] | None]:
    """The lines of rows and the last line, if there is one.  Raises ValueError: one is neither, or an id is twice."""
    found, last, seen = list[_Line](), None, set[str]()
    for number, line in enumerate(text.split("\n"), 1):  # an id may hold other line ends
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is no JSON: {error}") from error
        if isinstance(value, dict) and "lines" in value:
            if last is not None:
                raise ValueError(f"line {number} says once more how many lines there are")
            last = value
            if value.get(CHECKSUM) != checksum_of(value):
                raise ValueError(f"line {number}, the last one, is not as it was written: its checksum differs")
            continue
        accepted = _accepted(value, number)
        if accepted.id in seen:
            raise ValueError(f"line {number}: id={accepted.id} is there twice")
        seen.add(accepted.id)
        found.append(accepted)
    return found, last


def _accepted(value: Any, number: int) -> _Line:
    """The row in a line; one without a checksum is of before there were any, or somebody's own."""
    name, key, line = (value.get(n) if isinstance(value, dict) else None for n in ("id", "row_key", "line"))
    numbered = line is None or (type(line) is int and line > 0)
    if not isinstance(name, str) or not isinstance(key, str) or not _KEY.fullmatch(key) or not numbered:
        raise ValueError(f'line {number} is no {{"id": ..., "row_key": 32 hex digits}}')
    if (CHECKSUM in value or line is not None) and value.get(CHECKSUM) != checksum_of(value):
        raise ValueError(f"line {number}, id={name}, is not as it was written: its checksum differs")
    return _Line(name, key, line)


def _check_whole(lines: Sequence[_Line], last: dict[str, Any] | None) -> None:
    """Refuse (ValueError) a file that lacks a line that was written, or has one of another file."""
    written = {line.number: line for line in lines if line.number is not None}
    if last is None and not lines:
        raise ValueError("it is empty: not even the line that says how many there are is left")
    if last is None:
        if written:
            raise ValueError(f"its last line, which says how many there are, is missing after line {max(written)}")
        return
    count = last["lines"]
    if type(count) is not int or count < max(written, default=0):
        raise ValueError("its last line does not say how many there are")
    missing = next(k for k in itertools.count(1) if k not in written)
    if missing <= count:
        before, after = written.get(missing - 1), written.get(missing + 1)
        place = "".join(f", {word} id={line.id}" for word, line in (("after", before), ("before", after)) if line)
        more = f" and {count - len(written) - 1:,} more" if count > len(written) + 1 else ""
        raise ValueError(f"line {missing} of {count:,}{place} is missing{more}")
    if _digest((written[k].id, written[k].key) for k in sorted(written)) != last.get("digest"):
        raise ValueError("a line is not of this file: the digest of all of them differs")


def _digest(rows: Iterable[tuple[Any, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16, person=b"influence.base")
    for name, key in rows:
        digest.update(json.dumps([name, key]).encode())
    return digest.hexdigest()
