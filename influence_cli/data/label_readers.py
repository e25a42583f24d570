"""Labels as a source writes them -> labels as a manifest holds them, one reader a task."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from influence_cli.data.classes import CLEAN, Numbering
from influence_cli.data.kinds.protocol import is_text
from influence_cli.data.label_kinds import LARGEST, NOTHING, SEVERAL, TASKS
from influence_cli.data.plain_types import is_list

Tables = Callable[[], Iterator[pa.Table]]
MOST_NUMBERS = 10_000  # different labels that are looked at
MANY = 20  # different numbers, from which on they are looked at as quantities
DELIMITERS = (";", "|", ",")  # between labels in a text
_PART = r"""(?:'[^'\n]*'|"[^"\n]*"|[+-]?\d+\.?\d*|True|False)"""
_LIST = rf"\[\s*{_PART}(?:(?:\s*,\s*|\s+){_PART})*\s*,?\s*\]"  # a text that is a list
_COMMAS = rf"\[\s*{_PART}(?:\s*,\s*{_PART})*\s*,?\s*\]"  # NumPy writes none: Python would join its texts
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")


class BadLabel(ValueError):
    """What is wrong with a label, and what to do."""

    def __init__(self, what: str, fix: str = "repair the row", at: int | None = None) -> None:
        super().__init__(what)
        self.fix = fix
        self.at = at  # which one of several labels it is


@dataclass
class LabelReader:
    """What labels of a source mean; ``of`` gives the one that a manifest holds, None where there is none."""

    task: str
    names: tuple[str, ...] | None  # of classes, or of several labels
    type: pa.DataType
    of: Callable[[Any], Any]
    numbered: int | None = None  # how many classes are plain numbers
    notes: list[str] = field(default_factory=list)


def reader_of(task: str, names: Sequence[str] | None, tables: Tables) -> LabelReader:
    """The reader of a source's labels; ``names`` are those that the source says itself."""
    if TASKS[task].holds == SEVERAL:
        return _several(task, names, tables)
    if TASKS[task].holds == NOTHING:
        return LabelReader(task, None, pa.int64(), lambda _: 0)
    if task != "classification":
        return LabelReader(task, None, pa.float64(), _number)
    found, notes, numbered = _survey(names, tables)
    numbering = Numbering(found, bool(names))
    return LabelReader(task, found, pa.int64(), lambda v: _class(numbering, v), numbered, notes)


# ---- classes --------------------------------------------------------------------------------------------------------


def _class(numbering: Numbering, value: Any) -> int | None:
    """The number of a class, from its name or number."""
    if value is None:
        return None
    try:
        return numbering.of(value)
    except ValueError as error:
        fix = "repair the row"
        if isinstance(value, float) and value % 1 != 0:
            fix = "give classes, or pass --task regression where numbers are to be predicted"
        elif isinstance(value, int | float) and value < 0:
            fix = "where it is a class, write names; where it stands for a row without a label, leave it out"
        raise BadLabel(str(error), fix) from error


def _survey(names: Sequence[str] | None, tables: Tables) -> tuple[tuple[str, ...] | None, list[str], int | None]:
    """Names of classes, a note of classes without a label, and how many labels are plain numbers.

    Labels have names where they are names, or numbers that do not count from 0.
    """
    if names:
        return tuple(names), [], None
    found, clean, numbers, rows = set[str](), set[str](), set[int](), 0
    for table in tables():
        rows += table.num_rows
        found |= _names_in(table, "label")
        if len(numbers) <= MOST_NUMBERS:
            numbers |= _numbers_in(table)
        clean |= _names_in(table, CLEAN) - {""}
    notes: list[str] = []
    if len(numbers) >= MANY and 10 * len(numbers) > rows:
        notes.append(
            f"the labels are {len(numbers):,} different numbers in {rows:,} rows, and each is a class of its own: pass "
            "--task regression where numbers are to be predicted"
        )
    if not found:
        classes = _named_numbers(numbers)
        return classes, notes, None if classes or not numbers else max(numbers) + 1
    if clean - found:
        only = ", ".join(sorted(clean - found)[:10])
        notes.append(f"column {CLEAN} has classes that no label has, and they are classes too: {only}")
    return tuple(sorted(found | clean)), notes, None


def _names_in(table: pa.Table, column: str) -> set[str]:
    """The names in a column of text; none where it is of another type, or not there."""
    if column not in table.column_names or not is_text(table.schema.field(column).type):
        return set()
    return set(table.column(column).drop_null().to_pylist())


def _numbers_in(table: pa.Table) -> set[int]:
    """The whole numbers in the column of labels."""
    column = table.column("label")
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return set()
    values = column.unique().drop_null()[: MOST_NUMBERS + 1].to_pylist()
    return {int(v) for v in values if v == v and abs(v) != float("inf") and v % 1 == 0}


def _named_numbers(numbers: set[int]) -> tuple[str, ...] | None:
    """Names of classes whose numbers are no class numbers from 0 (1 and 2, -1 and 1, codes); None for those that are.

    With 0 among them some class may only lack rows; a negative number beside others is a row without a label.
    """
    signs = numbers == {-1, 1}
    codes = len(numbers) > 1 and min(numbers) >= 0 and max(numbers) >= max(100, 10 * len(numbers))
    if not numbers or len(numbers) > MOST_NUMBERS or not (signs or codes or min(numbers) > 0):
        return None
    return tuple(str(n) for n in sorted(numbers))


# ---- numbers --------------------------------------------------------------------------------------------------------


def _number(value: Any) -> float | None:
    """A finite number, or the text of one."""
    if isinstance(value, str):  # of a column in which some text is no number
        value = _of_text(value.strip())
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLabel(f"{value!r} is no number", "write a number, or name another column with --label")
    if math.isinf(value):
        raise BadLabel(f"{value!r} is not finite")
    if abs(value) > LARGEST:
        raise BadLabel(f"{value!r} is too large to be squared", "mend it, or take the row out")
    return float(value) + 0.0


def _of_text(text: str) -> float | str | None:
    """The number that a text writes; the text itself where it writes none."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


# ---- several labels a row -------------------------------------------------------------------------------------------


def _several(task: str, names: Sequence[str] | None, tables: Tables) -> LabelReader:
    """Labels that stand as 0 and 1 in lists, as lists of what is there, or as texts with delimiters."""
    kind = pa.list_(pa.int8())
    lists, texts = list[Any](), set[str]()
    for table in tables():
        column = table.column("label")
        if is_list(column.type):
            lists += column.to_pylist()
        else:
            texts.update(str(v) for v in column.unique().to_pylist() if v is not None)
    if lists:
        return _of_lists(task, names, lists)
    if any(looks_listed(text) for text in texts):
        reader = _of_lists(task, names, [found for text in sorted(texts) if (found := _listed_or_none(text))])
        note = "labels stand in lists that are written as text"
        return replace(reader, of=lambda v: reader.of(_listed(v)), notes=[note])
    delimiter = next((d for d in DELIMITERS if any(d in text for text in texts)), ";")
    split = lambda text: [part.strip() for part in str(text).split(delimiter) if part.strip()]  # noqa: E731
    found = tuple(names or sorted({part for text in texts for part in split(text)}))
    place = {name: k for k, name in enumerate(found)}
    note = f"labels stand in one text, with {delimiter!r} between; no text is none of the {len(found)} labels"

    def of(value: Any) -> list[int] | None:
        return None if value is None else _there(split(value), place, len(found))

    return LabelReader(task, found, kind, of, notes=[note])


def _of_lists(task: str, names: Sequence[str] | None, lists: Sequence[Any]) -> LabelReader:
    """Labels that stand in lists: 0 and 1 for each label, or what is there."""
    kind = pa.list_(pa.int8())
    widths = {len(v) for v in lists if v is not None}
    flags = {v for value in lists for v in value or () if v not in (None, 0, 1) and str(v).lower() not in (*_YES, *_NO)}
    wide = next(iter(widths)) if len(widths) == 1 else 0
    columns = names is not None and wide == len(names) and all(isinstance(v, str) for v in flags)
    if (columns and not flags & set(names or ())) or (wide > 1 and not flags):
        return LabelReader(task, tuple(names or map(str, range(wide))), kind, lambda v: _flags(v, wide))
    every = {v for value in lists for v in value or () if v is not None}
    found = tuple(names or (str(v) for v in sorted(every, key=lambda v: (isinstance(v, str), v))))
    by_name = {int(v): k for k, v in enumerate(found) if v.isdecimal()}
    numbers = {k: k for k, _ in enumerate(names)} if names else by_name
    place = {name: k for k, name in enumerate(found)} | numbers
    return LabelReader(task, found, kind, lambda v: _there(v, place, len(found)))


def looks_listed(text: str) -> bool:
    """Whether a text is a list as Python, JSON or NumPy write it: ['sport', 'art'] or [1 0]; [a] is a name."""
    return re.fullmatch(_LIST, text.strip()) is not None


def _listed(value: Any) -> Any:
    """The list that a text writes; others, and null, as they are."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not text:
        return None
    try:
        joined = looks_listed(text) and not re.fullmatch(_COMMAS, text)
        found = None if joined else ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(v, str | int | float) for v in found):
        fix = "write labels with ; between (sport;art), or as a list with commas: ['sport', 'art'] or [1, 0]"
        raise BadLabel(f"{value!r} is no list with commas, as other rows have", fix)
    return found


def _listed_or_none(text: str) -> Any:
    try:
        return _listed(text)
    except BadLabel:
        return None


def _flags(values: Sequence[Any] | None, wide: int) -> list[int] | None:
    """0 or 1 for each label."""
    if values is None:
        return None
    if len(values) != wide:
        raise BadLabel(f"{len(values)} labels where other rows have {wide}")
    found: list[int] = []
    for at, v in enumerate(values):
        text = "" if v is None or v != v else str(v).strip().lower()
        if text not in (*_YES, *_NO) or text == "":
            what = f"{v!r} is" if text else "a value is missing, which is"
            raise BadLabel(f"{what} neither 0 nor 1", "write 1 where the label is there, else 0", at)
        found.append(int(text in _YES))
    return found


def _there(values: Sequence[Any] | None, place: dict[Any, int], wide: int) -> list[int] | None:
    """1 for each label that a row names."""
    if values is None:
        return None
    found = [0] * wide
    for v in values:
        if v not in place:
            raise BadLabel(f"{v!r} is no label", f"the labels are {', '.join(map(str, list(place)[:20]))}")
        found[place[v]] = 1
    return found
