"""What a source is, and the column names and splits that all of them understand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from influence_cli.data.frames import IDS
from influence_cli.data.label_kinds import DEFAULT
from influence_cli.data.splits import split_of
from influence_cli.errors import ManifestError, nearest

IMAGE_NAMES = ("image", "img", "path", "file", "filename", "file_name", "image_path", "filepath")
LABEL_NAMES = ("label", "labels", "class", "target", "y", "category", "fine_label")
ID_NAMES = IDS
KEPT = ("split", "group", "weight", "clean_label")


@dataclass(frozen=True)
class LeftOut:
    """A column, a file or a folder that no row is made from, and why."""

    what: str  # such as "column when", "7 files .heic", "folder .git"
    reason: str


@dataclass(frozen=True)
class Source:
    """Rows as tables with columns id, a payload, label (names or integers), and optionally split and others.

    ``tables`` starts anew at every call.  ``classes`` are the names of labels 0, 1, ... where the source knows them.
    Relative payload paths count from ``folder``.
    ``left_out`` is what of the source is in no row, and ``notes`` what else people should know of how it was read.
    """

    kind: str
    tables: Callable[[], Iterator[pa.Table]]
    classes: tuple[str, ...] | None
    folder: str
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()  # what it was taken to mean, in sentences
    columns: Mapping[str, Any] | None = None  # of a table: what each column was taken for, as plain values
    names: tuple[str, ...] = ()  # of the features
    narrow: Callable[[], Iterator[pa.Table]] | None = None  # the tables without payloads, where these cost time
    counts: Counter[str] = field(default_factory=Counter)  # what is found while rows are read: (sentence, rows)
    task: str = DEFAULT  # what its labels are


def pick(names: list[str], asked: str | None, usual: tuple[str, ...], what: str, where: str) -> str | None:
    """The column that was asked for, or the first of the usual names that is there.

    Raises:
        ManifestError: the column that was asked for is not there.
    """
    if asked is not None:
        if asked not in names:
            raise ManifestError(f"no column {asked!r} for the {what}", where=where, fix=nearest(asked, names))
        return asked
    lowered = {n.lower(): n for n in names}
    return next((lowered[u] for u in usual if u in lowered), None)


def one_meaning(names: list[str], where: str, meaning: Callable[[str], str | None] = split_of) -> None:
    """Refuse two splits of one meaning, such as ``validation`` and ``dev``, where one would take the other's place.

    Raises:
        ManifestError: there are two.
    """
    first: dict[str | None, str] = {}
    for name in names:
        other = first.setdefault(meaning(name), name)
        if other != name:
            fix = "keep one of them, or put their rows together"
            raise ManifestError(f"{other} and {name} both mean split {meaning(name)}", where=where, fix=fix)


def one_numbering(classes: Mapping[str, tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """The classes of all files of a source, by file, which number their labels alike.

    Raises:
        ManifestError: two do not.
    """
    (first, names), *others = classes.items()
    for file, own in others:
        if own != names:
            here, there = (", ".join(n[:10]) if n else "none" for n in (own, names))
            fix = "number the classes of all files alike"
            raise ManifestError(f"its classes ({here}) are not those of {first} ({there})", where=file, fix=fix)
    return names


def usual_splits(column: pa.ChunkedArray, where: str, name: str) -> pa.Array:
    """A split column with its usual spellings (validation, dev, training) as train, val and test.

    Raises:
        ManifestError: a value is none of them.
    """
    values = column.to_pylist()
    for row, value in enumerate(values):
        if not isinstance(value, str) or split_of(value) is None:
            fix = f"use train, val and test, or pass --drop-column {name} to leave the column out"
            raise ManifestError(f"unknown split {value!r}", where=f"{where}, row {row}, column {name}", fix=fix)
    return pa.array([split_of(v) for v in values], pa.string())
