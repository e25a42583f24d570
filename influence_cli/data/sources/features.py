"""Columns of a table as one vector of features a row, by recipes that a manifest keeps, so that later rows fit.

A number is itself, with the median where it is missing; a text of few different values is one number a category, 1 in
the row's own; a list of numbers is its numbers.  Large numbers count from the smallest, since features are float32.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.kinds.protocol import is_text
from influence_cli.data.plain_types import pc
from influence_cli.data.sources.survey import (
    COMMA,
    EXACT_WHOLE,
    PLAIN,
    SPACED,
    THOUSANDS,
    TRUTH,
    Survey,
    as_numbers,
    matches,
    text_of_bytes,
    texts_in,
)

EXACT = float(1 << 24)  # the largest whole number up to which float32 holds every one
BLUR = 1e-4  # of a column's span: rounding to float32 may be as large
MEDIANS = 20_000_000  # numbers of all columns, up to which every column's median is kept for later files
NUMBER, CATEGORY, VECTOR = "number", "category", "vector"
NOT_THERE = "(missing)"


@dataclass(frozen=True)
class Feature:
    """How one column becomes features."""

    column: str
    kind: str  # number, category or vector
    form: str = PLAIN  # how text writes its numbers
    unit: str = ""  # a currency or percent sign that all numbers have
    origin: float = 0.0  # what numbers count from
    fill: float | None = None  # the median, in place of a missing number
    missing: bool = False  # whether a number was missing when that was found out
    categories: tuple[str, ...] = ()  # NOT_THERE last, where a value can be missing
    width: int = 1  # of a vector

    @property
    def names(self) -> list[str]:
        """What its features are called."""
        if self.kind == CATEGORY:
            return [f"{self.column}={category}" for category in self.categories]
        return [f"{self.column}[{k}]" for k in range(self.width)] if self.kind == VECTOR else [self.column]

    def encode(self, values: pa.Array) -> NDArray[np.float64]:
        """Features [n, w] of a column's rows; NaN where a number is missing and there is nothing in its place."""
        if self.kind == CATEGORY:
            return self._one_hot(values)
        if self.kind == VECTOR:
            return _stacked(values, self.width)
        numbers = numbers_of(values, self.form, self.unit, self.origin)
        if self.fill is not None:
            numbers = np.where(missing_in(values, numbers), self.fill - self.origin, numbers)
        return numbers[:, None]

    def _one_hot(self, values: pa.Array) -> NDArray[np.float64]:
        """A 1 in the row's category; a row of a category that is not known has none."""
        at = self.places(values)
        rows = np.flatnonzero(at >= 0)
        out = np.zeros((len(values), len(self.categories)))
        out[rows, at[rows]] = 1.0
        return out

    def places(self, values: pa.Array) -> NDArray[np.int64]:
        """The place [n] of each row's category; -1 where it is none of them."""
        texts = pc.fill_null(as_texts(values), NOT_THERE)
        found = pc.index_in(texts, pa.array(self.categories, texts.type))
        return pc.if_else(pc.is_valid(found), found, -1).to_numpy(zero_copy_only=False).astype(np.int64)

    def unknown(self, values: pa.Array) -> list[str]:
        """Values of a category that is not known, a row each."""
        if self.kind != CATEGORY:
            return []
        away = pa.array(self.places(values) < 0)
        return [NOT_THERE if v is None else v for v in as_texts(values).filter(away).to_pylist()]

    def as_dict(self) -> dict[str, Any]:
        """Plain values; what says nothing is left out."""
        return {k: v for k, v in vars(self).items() if k in ("column", "kind") or v != getattr(Feature, k)}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Feature:
        """The inverse of ``as_dict``."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return Feature(**plain)


def as_texts(values: pa.Array) -> pa.Array:
    """A column as text, without spaces around it; null where nothing is written."""
    kind = values.type
    if pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        texts = text_of_bytes(values)
        return (
            texts_in(texts)
            if texts is not None
            else pa.array([None if v is None else v.hex() for v in values.to_pylist()])
        )
    if is_text(kind):
        return texts_in(values)
    if pa.types.is_boolean(kind):
        return pc.if_else(values, "True", "False")
    if pa.types.is_null(kind):
        return pa.nulls(len(values), pa.string())
    try:
        return pc.cast(values, pa.string())
    except (pa.ArrowException, TypeError):
        return pa.array([None if v is None else str(v) for v in values.to_pylist()], pa.string())


def numbers_of(values: pa.Array, form: str = PLAIN, unit: str = "", origin: float = 0.0) -> NDArray[np.float64]:
    """A column's numbers [n] less ``origin``; NaN where there is none."""
    kind = values.type
    if is_text(kind):
        return as_numbers(texts_in(values), form, bool(unit)) - origin
    if origin and pa.types.is_integer(kind):  # exact beyond what float64 holds
        values = pc.subtract(pc.cast(values, pa.decimal128(20, 0)), pa.scalar(int(origin), pa.decimal128(20, 0)))
        return pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False)
    if pa.types.is_null(kind):
        return np.full(len(values), np.nan)
    if pa.types.is_boolean(kind):
        values = pc.cast(values, pa.uint8())
    return pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False) - origin


def missing_in(values: pa.Array, numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which numbers [n] are missing; a text that says NaN is no missing number, but one that could not be computed."""
    if not is_text(values.type) or not np.isnan(numbers).any():
        return np.isnan(numbers)
    said = matches(texts_in(values), "(?i)^[+-]?nan$")
    return np.isnan(numbers) & ~pc.fill_null(said, False).to_numpy(zero_copy_only=False)


def _stacked(values: pa.Array, width: int) -> NDArray[np.float64]:
    """Lists as rows [n, width]; NaN in rows that have none or another length."""
    out = np.full((len(values), width), np.nan)
    lengths = pc.list_value_length(values)
    good = pc.fill_null(pc.equal(lengths, width), False).to_numpy(zero_copy_only=False)
    inner = values.filter(pa.array(good)).flatten()
    flat = pc.cast(inner, pa.float64(), **({} if is_text(inner.type) else {"safe": False}))
    out[good] = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
    return out


@dataclass(frozen=True)
class Judged:
    """What became of a column: a feature, or the reason why it is left out; and what is to be said of it."""

    feature: Feature | None
    reason: str = ""
    notes: tuple[str, ...] = ()


def judge(column: Survey, most: int, marks: str, asked: bool) -> Judged:
    """A column as a feature; ``asked``: it was named, so that a text of any number of values is one."""
    if column.other is not None:
        return Judged(None, f"it holds {column.other}")
    if column.is_date:
        return Judged(None, "it holds dates or times; turn them into numbers, such as days since a date")
    if column.missing == column.rows:
        return Judged(None, "no row has a value")
    if column.lists:
        return _vector(column)
    if not column.texts:
        return _number(column, PLAIN, "")
    form = column.form(marks)
    if form is not None and not (column.booleans and column.texts):
        return _number(column, *form)
    return _category(column, most, asked)


def _vector(column: Survey) -> Judged:
    if column.texts or column.numbers or column.booleans:
        return Judged(None, "some rows hold lists and others do not")
    widths = sorted(w for w in column.widths if w is not None)
    if len(widths) != 1:
        return Judged(None, f"its lists have different lengths ({widths[0]} to {widths[-1]})")
    if widths == [0]:
        return Judged(None, "its lists are empty")
    return Judged(Feature(column.name, VECTOR, width=widths[0]))


def _number(column: Survey, form: str, unit: str) -> Judged:
    notes, missing = said_of_form(column.name, form, unit), bool(column.missing or column.markers)
    if column.texts and column.whole and EXACT_WHOLE < max(abs(column.low), abs(column.high)) < np.inf:
        return Judged(
            None, f"its whole numbers are too long to be exact (above {EXACT_WHOLE:,.0f}), as identifiers are"
        )
    origin = origin_of(column)
    if origin:
        notes.append(f"column {column.name}: values do not fit float32 and count from {origin:,}")
        step = (column.high - column.low) / EXACT
        if column.whole and step > 1:
            notes.append(f"column {column.name}: values are still rounded, to about {step:,.2g}")
    # the median takes the place of nan, once it is known
    return Judged(Feature(column.name, NUMBER, form, unit, origin, np.nan, missing), notes=tuple(notes))


_READ = {
    COMMA: "1,5 is read as 1.5, and 1.234 as 1234", THOUSANDS: "1,234 is read as 1234",
    SPACED: "1 234 is read as 1234", TRUTH: "true is read as 1, and false as 0",
}  # fmt: skip


def said_of_form(column: str, form: str, unit: str) -> list[str]:
    """How a column's numbers are read, in sentences; none for plain ones."""
    read = [f"column {column}: {_READ[form]}"] if form in _READ else []
    return [*read, f"column {column}: numbers are read without their {unit}"] if unit else read


def origin_of(column: Survey) -> float:
    """What a column's numbers count from: the least of them, where float32 would blur them otherwise."""
    largest, span = max(abs(column.low), abs(column.high)), column.high - column.low
    if not np.isfinite(largest) or largest <= 1.0:
        return 0.0
    blurred = not column.whole and span > 0 and largest / EXACT > BLUR * span
    if not blurred and largest <= EXACT:
        return 0.0
    return column.least if column.least is not None else column.low


def _category(column: Survey, most: int, asked: bool) -> Judged:
    values, rows = column.values, column.rows - column.missing
    if len(values) == 1 and not column.missing and not asked:
        return Judged(None, f"every row has {next(iter(values))!r}")
    few = len(values) <= most and 2 * len(values) <= rows
    if not few and not (asked and len(values) <= column.most):
        many = f"{len(values):,}" if len(values) <= column.most else f"more than {column.most:,}"
        strange = f" ({column.strange!r} is no number)" if column.numbers and column.strange else ""
        return Judged(None, f"text with {many} different values in {rows:,} rows{strange}")
    there = (NOT_THERE,) if column.missing else ()
    notes = ()
    if column.numbers and column.strange:
        notes = (f"column {column.name}: {column.strange!r} is no number, so its values are categories",)
    return Judged(Feature(column.name, CATEGORY, categories=(*sorted(values - {NOT_THERE}), *there)), notes=notes)


def with_medians(
    features: Sequence[Feature], rows: int, chunks: Callable[[], Iterable[tuple[pa.Table, Any]]]
) -> list[Feature]:
    """The features with the median in place of missing numbers: of the rows that may be trained on.

    Of large tables only columns that lack a number have one.  ``chunks`` gives the tables, and which of their rows [n]
    these are; where none of them has a number, it is of all rows.
    """
    numbers = [f for f in features if f.fill is not None and f.fill != f.fill]
    wanted = numbers if rows * len(numbers) <= MEDIANS else [f for f in numbers if f.missing]
    none = {id(f) for f in numbers} - {id(f) for f in wanted}  # by identity: thousands of columns are not compared
    features = [dataclasses.replace(f, fill=None) if id(f) in none else f for f in features]
    if not wanted:
        return list(features)
    found: dict[str, list[NDArray[np.float64]]] = {f.column: [] for f in wanted}
    others: dict[str, list[NDArray[np.float64]]] = {f.column: [] for f in wanted}
    for table, trained in chunks():
        for f in wanted:
            numbers = numbers_of(column_of(table, f.column), f.form, f.unit)
            finite = np.isfinite(numbers)
            found[f.column].append(numbers[finite & trained])
            others[f.column].append(numbers[finite & ~trained])
    medians = {name: _median(found[name]) if sum(map(len, found[name])) else _median(others[name]) for name in found}
    return [dataclasses.replace(f, fill=medians[f.column]) if f.column in medians else f for f in features]


def _median(parts: list[NDArray[np.float64]]) -> float | None:
    numbers = np.concatenate(parts)
    return float(np.median(numbers)) if len(numbers) else None


def count_blurred(numbers: NDArray[Any], of: str, counts: Counter[str]) -> None:
    """Count numbers that float32 does not hold, of a column or nothing."""
    large = numbers[np.abs(numbers.astype(np.float64)) > EXACT]
    blurred = int((large.astype(np.float32).astype(large.dtype) != large).sum())
    if blurred:
        counts[f"{of}a number above {EXACT:,.0f} is rounded to float32; subtract an offset"] += blurred


def column_of(table: pa.Table, name: str) -> pa.Array:
    """A column as one array; nulls where the table has none, as lines of JSON may."""
    at = table.schema.get_field_index(name)  # quick, also among thousands
    return pa.nulls(table.num_rows) if at < 0 else whole(table.column(at))


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    if column.num_chunks == 1:
        return column.chunk(0)
    joined = column.combine_chunks()
    return joined if isinstance(joined, pa.Array) else pa.concat_arrays(joined.chunks)


def encoded(features: Sequence[Feature], table: pa.Table) -> pa.Array:
    """The features of a table's rows, as lists of float32."""
    n, width = table.num_rows, sum(len(f.names) for f in features)
    values = np.empty((n, width), np.float32)
    at = 0
    for f in features:
        block = f.encode(column_of(table, f.column))
        values[:, at : at + block.shape[1]] = block
        at += block.shape[1]
    offsets = np.arange(0, (n + 1) * width, width or 1, dtype=np.int32) if width else np.zeros(n + 1, np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def summary(features: Sequence[Feature]) -> Iterator[str]:
    """What people are told of the features, in a few sentences."""
    width = sum(len(f.names) for f in features)
    names = [f"{f.column} ({len(f.names)} {'categories' if f.kind == CATEGORY else 'numbers'})" if f.kind != NUMBER
             else f.column for f in features]  # fmt: skip
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
    yield f"features: {width:,}, from {len(features):,} columns: {shown}"
    filled = [f"{f.column} (median {f.fill:g})" for f in features if f.fill is not None and f.missing]
    if filled:
        more = f" and {len(filled) - SHOWN:,} more" if len(filled) > SHOWN else ""
        yield f"a missing number gets the median of its column: {', '.join(filled[:SHOWN])}{more}"


SHOWN = 24
