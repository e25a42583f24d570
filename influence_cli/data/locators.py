"""Where rows and weights are that a table's provenance names: kept relative to the table's folder, seen from here.

A path that was given relative is written into a file as seen from the file's folder, with a note that says so; so
table and data may move together, and be read from anywhere.  A table without the note (one in memory, or one that went
through standard output) names paths as seen from the working folder of the command that made it.  Where its file stands
elsewhere both folders are tried, and where both have something the manifest's fingerprint decides.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from influence_cli.data.open import open_manifest
from influence_cli.data.outputs import is_stream
from influence_cli.data.tables import parquet_files, provenance, read_schema, with_provenance
from influence_cli.errors import InfluenceError, UsageError
from influence_cli.store.remote import is_remote

PARTS = ("manifest", "target", "fit_rows", "checkpoint")  # of a provenance, which may name a path
NOTE, TABLE = "paths_count_from", "table"
GIVEN = "paths_given"  # as seen from the working folder of the command that wrote the file
FLAGS = {"manifest": "--manifest", "target": "--target", "fit_rows": "--fit-rows", "checkpoint": "--checkpoint"}

Move = Callable[[str], str]


def written_to(table: pa.Table, output: str | Path) -> pa.Table:
    """The table as it is written to a place: paths in its provenance count from the folder of the file."""
    origin = provenance(table.schema)
    if origin and is_remote(output):
        return with_provenance(table, _moved(origin, os.path.abspath))  # no path counts from an address
    if not origin or NOTE in origin or str(output) == "-" or is_stream(output):
        return table  # with the note it is as it was read, and its paths count from where it goes
    folder = os.path.dirname(os.path.realpath(output))
    moved = _moved(origin, lambda path: _relative(os.path.abspath(path), folder))
    given = {name: _path(origin, name) for name in PARTS if _path(moved, name) != _path(origin, name)}
    return with_provenance(table, {**moved, NOTE: TABLE, GIVEN: given})


def origin_of(schema: pa.Schema, source: Any) -> dict[str, Any]:
    """The provenance of a table that was read from ``source``, its paths as seen from the working folder."""
    origin = provenance(schema, str(source) if isinstance(source, str | Path) else "")
    folder = _folder(source)
    noted, given = origin.pop(NOTE, None) == TABLE, origin.pop(GIVEN, {})
    if not origin or folder is None:  # a stream has no folder: paths count from the working folder, as they were given
        there = {name: path for name, path in given.items() if name in origin and path and os.path.exists(path)}
        return {**origin, **{name: {**origin[name], "locator": path} for name, path in there.items()}}
    beside = _moved(origin, lambda path: _relative(os.path.normpath(os.path.join(folder, path)), os.getcwd()))
    first, second = (beside, origin) if noted else (origin, beside)
    if _is_it(first, second):
        return _found(first, second)
    return _found(second, first)


def require_found(origin: dict[str, Any], part: str, source: str) -> str:
    """The path of a part, which is there.

    Raises:
        UsageError: the provenance names none, or nothing is there.
    """
    path, flag = _path(origin, part), FLAGS[part]
    if path is None or path == "-":
        raise UsageError(f"the table does not say where its {part} is", where=source, fix=f"pass {flag} PATH")
    if _is_local(path) and not os.path.exists(path):
        what = f"the {part} that the table was made from is not at {path}"
        raise UsageError(what, where=source, fix=f"pass {flag} PATH to say where it is by now")
    return path


def named_in(source: Any) -> list[str]:
    """The files and folders that the provenance of a stage's table names; none where it cannot be read."""
    try:
        schema = getattr(source, "schema", None)
        if schema is None and Path(source).suffix in (".csv", ".jsonl"):
            return []
        origin = origin_of(read_schema(parquet_files(str(source))[0]) if schema is None else schema, source)
    except (InfluenceError, OSError, ValueError, TypeError):
        return []  # the stage that reads it says why
    return [path for name in ("manifest", "target", "fit_rows") if (path := _path(origin, name))]


def _moved(origin: dict[str, Any], move: Move) -> dict[str, Any]:
    """The provenance with every relative path moved."""
    changed = dict(origin)
    for name in PARTS:
        path = _path(origin, name)
        if path is not None and _is_local(path) and not os.path.isabs(path):
            changed[name] = {**origin[name], "locator": move(path)}
    return changed


def _path(origin: dict[str, Any], name: str) -> str | None:
    """The path of a part; None where the provenance names none."""
    part = origin.get(name)
    path = part.get("locator") if isinstance(part, dict) else None
    return path if isinstance(path, str) else None


def _is_local(path: str) -> bool:
    return path not in ("", "-") and "://" not in path


def _relative(path: str, folder: str) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _folder(source: Any) -> str | None:
    """The folder that a table's file stands in, links followed; None for what is no file of this machine."""
    if not isinstance(source, str | Path) or not _is_local(str(source)):
        return None
    path = os.path.realpath(source)
    return path if os.path.isdir(path) else os.path.dirname(path)


def _is_it(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether the paths of ``first`` are meant: no other manifest is at those of ``second``, or it is another one."""
    one, other = (_path(origin, "manifest") for origin in (first, second))
    if one is None or other is None or one == other or not os.path.exists(other):
        return True
    if not os.path.exists(one):
        return False
    return _has_fingerprint(first) or not _has_fingerprint(second)


def _has_fingerprint(origin: dict[str, Any]) -> bool:
    """Whether the manifest at a place is the one that the table was made from."""
    then = origin["manifest"]
    try:
        manifest = open_manifest(then["locator"], then.get("label") or "label", bool(origin.get("skip_bad")))
    except InfluenceError:
        return False
    return manifest.fingerprint == then.get("fingerprint")


def _found(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The paths of ``first``, but for parts that are only where ``second`` says."""
    found = dict(first)
    for name in PARTS:
        one, other = _path(first, name), _path(second, name)
        if one is not None and other is not None and not os.path.exists(one) and os.path.exists(other):
            found[name] = second[name]
    return found
