"""Classes by name: one numbering for every manifest of a run, and for every column that holds labels.

A label is a number, and what it means are the names that its manifest gives them.  Where two manifests have names, the
labels of one are numbered as in the other; where one has none, its labels stand for themselves, unless the names of
the other are numbers too, which then name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.partitions import folder_of
from influence_cli.data.tables import read_schema
from influence_cli.errors import ManifestError, nearest
from influence_cli.store.keys import parse_json
from influence_cli.store.lfs import FIX, WHAT, is_pointer

Names = Sequence[str]
CLEAN = "clean_label"  # column of a manifest: the true labels, where they are known
SHOWN = 10  # names in a message


def read_names(stored: bytes, where: str) -> tuple[str, ...]:
    """The names of classes 0, 1, ... as a manifest holds them: a list in JSON.  Raises ManifestError: they are none."""
    if is_pointer(stored):
        raise ManifestError(WHAT, where=where, fix=FIX)
    try:
        names = parse_json(stored)
    except ValueError:
        names = None
    if not isinstance(names, list):
        fix = 'write a list, such as ["cat", "dog"], or take it out'
        raise ManifestError("the names of the classes are no list in JSON", where=f"{where}, classes", fix=fix)
    return tuple(str(n) for n in names)


def class_name(classes: Names | None, label: int) -> str:
    """What a class is called: its name, or its number where it has none.

    >>> class_name(("cat", "dog"), 1), class_name(None, 1), class_name(("cat",), 7), class_name(("cat",), -1)
    ('dog', '1', '7', '-1')
    """
    return classes[label] if classes is not None and 0 <= label < len(classes) else str(label)


def class_called(classes: Names | None, label: int) -> str:
    """A class in a sentence: "class dog"; one whose name says already that it is a class stands alone.

    >>> class_called(("cat", "dog"), 1), class_called(None, 1), class_called(("class a", "class b"), 1)
    ('class dog', 'class 1', 'class b')
    """
    name = class_name(classes, label)
    return name if name.lower().startswith("class ") else f"class {name}"


def label_called(classes: Names | None, label: int) -> str:
    """A label by its number, which is what is wrong with it, and its name where it has one.

    >>> label_called(("cat", "dog"), 1), label_called(("cat", "dog"), 7)
    ('label 1 (dog)', 'label 7')
    """
    name = class_name(classes, label)
    return f"label {label}" if name == str(label) else f"label {label} ({name})"


class Numbering:
    """The label of every name or number in a source's columns of labels."""

    def __init__(self, classes: Names | None, given: bool) -> None:
        """``classes`` are the source's own where ``given``: then numbers are labels; otherwise they are names too."""
        self.classes, self.given = classes, given
        self.number = {name: k for k, name in enumerate(classes or ())}
        values = [int(name) for name in self.number if name.isdecimal()]  # 01 is 1 as well, unless both are there
        self.by_value = {int(n): k for n, k in self.number.items() if n.isdecimal() and values.count(int(n)) == 1}

    def of(self, value: Any) -> int:
        """The label.  Raises ValueError: it is no class."""
        if isinstance(value, str):
            found = int(value) if self.classes is None and value.isdecimal() else self.number.get(value)
        elif isinstance(value, int | float) and value % 1 == 0 and str(int(value)) in self.number and not self.given:
            found = self.number[str(int(value))]
        elif isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value % 1 != 0:
            raise ValueError(f"{value!r} is no class number")
        elif self.classes is None or self.given:
            found = int(value) if self.classes is None or value < len(self.classes) else None
        else:
            found = self.number.get(str(value), self.by_value.get(int(value)))
        if found is None:
            raise ValueError(f"unknown class {value!r}; {nearest(str(value), list(self.number))}")
        return found


def class_count(classes: Names | None, labels: NDArray[np.int64]) -> int:
    """How many classes data have: as many as have names, otherwise up to the largest of the labels [n]."""
    return len(classes) if classes else int(labels.max(initial=-1)) + 1


def numbers_in(own: Names | None, classes: Names | None, where: str, of: str) -> dict[int, int] | None:
    """Which label of ``classes`` each label of ``own`` is; None where every label stays.

    Raises:
        ManifestError: a name is none of ``classes``, or stands twice among them.
    """
    if (None if own is None else tuple(own)) == (None if classes is None else tuple(classes)):
        return None
    if own is not None and classes is not None:
        numbers = _by_name(own, classes, where, of)
    elif classes is not None:
        numbers = {value: k for k, value in enumerate(_values(classes, of) or ())}
    else:
        numbers = dict(enumerate(_values(own or (), where) or ()))
    return None if all(k == v for k, v in numbers.items()) else numbers


def _by_name(own: Names, classes: Names, where: str, of: str) -> dict[int, int]:
    number = {name: k for k, name in enumerate(classes)}
    unknown = [name for name in own if name not in number]
    if unknown:
        here, there = (", ".join(names[:SHOWN]) for names in (unknown, classes))
        what = f"its classes {here} are none of {of} ({there})"
        fix = f"{nearest(unknown[0], list(classes))}; or give both the same classes"
        raise ManifestError(what, where=f"{where}, classes", fix=fix)
    for names, place in ((own, where), (classes, of)):
        twice = [name for name in own if list(names).count(name) > 1]
        if twice:
            raise ManifestError(f"two classes are called {twice[0]!r}", where=f"{place}, classes", fix="rename one")
    return {k: number[name] for k, name in enumerate(own)}


def _values(names: Names, where: str) -> list[int] | None:
    """The numbers that names are, where these are not the numbers of their classes; None for other names.

    Raises:
        ManifestError: some names are such numbers, and others are none.
    """
    values = [int(name) if name.isdecimal() else None for name in names]
    if all(value is None or value == k for k, value in enumerate(values)):
        return None
    found = [value for value in values if value is not None]
    if len(set(found)) < len(names):
        what = f"labels are plain numbers where its classes are called {', '.join(names[:SHOWN])}"
        fix = "name the classes of both manifests (schema metadata key 'classes'), or of neither"
        raise ManifestError(what, where=f"{where}, classes", fix=fix)
    return found


def _classes_of(schema: pa.Schema, file: Path, source: str) -> tuple[str, ...] | None:
    """The names of the classes, from a file's metadata or a file beside it."""
    stored, beside = (schema.metadata or {}).get(b"classes"), folder_of(file) / "classes.json"
    if stored is not None:
        return read_names(stored, source)
    return read_names(beside.read_bytes(), str(beside)) if beside.is_file() else None


def classes_of_files(files: Sequence[Path], source: str) -> tuple[str, ...] | None:
    """The classes of all files, whose labels stand in one column.

    Raises:
        ManifestError: the labels of one mean other classes than those of the first.
    """
    (first, known), *others = ((file, _classes_of(read_schema(file), file, source)) for file in files)
    for file, classes in others:
        where = f"{source}: {file.name}"
        if classes is not None and known is not None and classes != known:
            here, there = (", ".join(names[:SHOWN]) for names in (classes, known))
            what = f"its labels mean other classes ({here}) than those of {first.name} ({there})"
            raise ManifestError(what, where=where, fix="number the classes of all files alike")
        if numbers_in(classes, known, str(file), str(first)) is not None:
            fix = "name the classes of all files, or of none"
            raise ManifestError("only some files name their classes", where=where, fix=fix)
    return known
