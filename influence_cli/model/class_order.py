"""The order of a checkpoint's outputs: the names of its classes, matched with those of a manifest.

Labels are numbered as the manifest says.  A checkpoint whose classes stand in another order has its outputs put into
the manifest's, so that every label, score and probability is of the manifest's classes; classes that the manifest does
not have come last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.classes import SHOWN, Names, numbers_in
from influence_cli.errors import UsageError
from influence_cli.model.spec import ModelSpec
from influence_cli.store.lfs import FIX, WHAT, is_pointer

FLAG = "--class-map"
NATURAL, TEXT, CHECKPOINT = "natural", "text", "checkpoint"  # orders that need no file
HOW = "give a list of names in the order of the outputs, or an object of name: number, as ImageFolder's class_to_idx"


def natural_key(name: str) -> list[Any]:
    """By which names sort in natural order: numbers within them by value.

    >>> sorted(["10", "9", "a2", "a10", "1"], key=natural_key)
    ['1', '9', '10', 'a2', 'a10']
    """
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts if p]


def sorted_names(word: str, names: Names) -> tuple[str, ...]:
    """Names in the order that a word means: natural, or that of their texts."""
    return tuple(sorted(names, key=natural_key if word == NATURAL else None))


def read_class_map(given: Any, known: Names | None) -> tuple[str, ...] | str | None:
    """The names of a checkpoint's classes in its own order, the word ``checkpoint``, or None where nothing was given.

    ``given`` is a file, one of the words ``natural``, ``text`` and ``checkpoint``, names in order, or numbers by name;
    ``known`` are the manifest's names, which the first two words sort.

    Raises:
        UsageError: it cannot be read, or says no order.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        return _of_object(given, "the class map")
    if isinstance(given, Sequence) and not isinstance(given, str):
        return _of_list(list(given), "the class map")
    path = Path(given)
    if path.exists() or path.name not in (NATURAL, TEXT, CHECKPOINT):
        return _of_file(path)
    if path.name == CHECKPOINT:
        return CHECKPOINT
    if not known:
        what = f"{FLAG} {path.name}: the manifest's classes have no names to sort"
        raise UsageError(what, fix=f"pass {FLAG} FILE, or name them (schema metadata key 'classes')")
    return sorted_names(path.name, known)


def names_of_outputs(
    given: tuple[str, ...] | str | None, carried: Names | None, outputs: int | None, where: str
) -> tuple[str, ...] | None:
    """The names of a checkpoint's classes by what ``read_class_map`` gave and by what the checkpoint says itself.

    Given names may call an output otherwise than the checkpoint does, as where it has descriptions of its classes.

    Raises:
        UsageError: a name is that of another output in the checkpoint, which says none, or has another number of them.
    """
    if given is None:
        return None
    if isinstance(given, str):
        if carried is None:
            what = f"{FLAG} {CHECKPOINT}: the checkpoint does not say its classes"
            raise UsageError(what, where=where, fix=f"pass {FLAG} FILE with their names in its order")
        return tuple(carried)
    moved = [n for k, n in enumerate(given) if n in (carried or ()) and (carried or ())[k : k + 1] != (n,)]
    if moved or (carried is not None and len(carried) != len(given)):
        assert carried is not None
        here, there = (", ".join(some[:SHOWN]) for some in (given, carried))
        what = f"{FLAG} ({here}) contradicts the checkpoint, whose classes are {there}"
        raise UsageError(what, where=where, fix=f"leave {FLAG} out, or pass {FLAG} {CHECKPOINT}")
    if outputs is not None and outputs != len(given):
        what = f"{FLAG} names {len(given)} classes, and the model has {outputs} outputs"
        raise UsageError(what, where=where, fix="name every output, in order")
    return given


def _of_file(path: Path) -> tuple[str, ...]:
    """The names in a file: JSON, CSV of names or of names and numbers, or a name a line."""
    where = str(path)
    if not path.is_file():
        raise UsageError("no such class map", where=where, fix=f"give a file, or {NATURAL}, {TEXT} or {CHECKPOINT}")
    if is_pointer(path):
        raise UsageError(WHAT, where=where, fix=FIX)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("[", "{"):
            value = json.loads(text)
            return _of_object(value, where) if isinstance(value, dict) else _of_list(value, where)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"the class map cannot be read ({error})", where=where, fix=HOW) from error
    if path.suffix.lower() in (".csv", ".tsv"):
        import csv

        lines = text.splitlines()
        rows = list(csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
        return _of_columns([row for row in rows if row], where)
    return _of_list([line.strip() for line in text.splitlines() if line.strip()], where)


def _of_columns(rows: list[list[str]], where: str) -> tuple[str, ...]:
    """One column of names, or names and numbers in the order that the numbers tell; a first line of titles is none."""
    rows = [[cell.strip() for cell in row] for row in rows]
    if rows and all(len(row) == 1 for row in rows):
        titled = rows[0][0].lower() in ("name", "names", "class", "classes", "label", "class_name")
        return _of_list([row[0] for row in rows[titled:]], where)
    if not rows or not all(len(row) == 2 for row in rows):
        raise UsageError("the class map has neither one column nor two", where=where, fix="write name,number")
    number = {"index", "idx", "id", "number", "output", "class_id", "label_id"}
    titles = [cell.lower() for cell in rows[0]]
    at = [k for k, title in enumerate(titles) if title in number]
    rows = rows[1:] if at or not any(cell.isdecimal() for cell in rows[0]) else rows
    numbered = [k for k in (1, 0) if sorted(r[k] for r in rows) == sorted(map(str, range(len(rows))))]
    if len(at) != 1 and len(numbered) != 1:
        what = "which column of the class map is the number of the output cannot be told"
        raise UsageError(what, where=where, fix="write a first line: name,number")
    k = at[0] if len(at) == 1 else numbered[0]
    return _of_pairs([(row[1 - k], row[k]) for row in rows], where)


def _of_object(value: Mapping[Any, Any], where: str) -> tuple[str, ...]:
    """Names by number: of {name: number}, or of {number: name}."""
    pairs = list(value.items())
    if pairs and all(isinstance(v, str) for _, v in pairs):
        pairs = [(v, k) for k, v in pairs]
    return _of_pairs(pairs, where)


def _of_pairs(pairs: list[tuple[Any, Any]], where: str) -> tuple[str, ...]:
    """Names in the order of their numbers, which are all from 0 on."""
    try:
        numbered = sorted((int(str(number)), str(name)) for name, number in pairs)
    except ValueError:
        numbered = []
    if not numbered or [number for number, _ in numbered] != list(range(len(pairs))):
        raise UsageError("the class map does not give every output from 0 on one name", where=where, fix=HOW)
    return _of_list([name for _, name in numbered], where)


def _of_list(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str | int) for v in value):
        raise UsageError("the class map is no list of names", where=where, fix=HOW)
    names = tuple(map(str, value))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two outputs of the class map are called {twice!r}", where=where, fix="rename one")
    return names


def in_order_of(spec: ModelSpec, names: Names, own: Names | None, source: str) -> ModelSpec:
    """The spec with its outputs, which are called ``names``, in the order of a manifest's classes.

    Raises:
        ManifestError: a class of the manifest is none of the names.
    """
    numbers = numbers_in(own, names, source, "the checkpoint")
    if numbers is None and (not own or len(own) == len(names)):
        return replace(spec, classes=tuple(names))
    numbers = {k: k for k in range(len(own or ()))} if numbers is None else numbers
    first = [numbers[k] for k in range(len(numbers)) if k in numbers]
    if len(first) < len(numbers):  # names that are numbers, and not those of labels from 0 on
        what = f"the labels of {source} are plain numbers, and the checkpoint's classes are called otherwise"
        raise UsageError(what, where=source, fix="name the classes of the manifest (schema metadata key 'classes')")
    order = [*first, *sorted(set(range(len(names))) - set(first))]
    classes = tuple(names[k] for k in order)
    before = spec.order or tuple(range(len(order)))
    return replace(spec, classes=classes, order=tuple(before[k] for k in order))


def reordered(labels: NDArray[np.int64], order: Sequence[int] | None) -> NDArray[np.int64]:
    """Which output of the weights each label [n] is."""
    return labels if order is None else np.asarray(order, dtype=np.int64)[labels]
