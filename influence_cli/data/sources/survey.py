"""What a column of a table holds, found out over all of its rows, chunk by chunk.

A column of text is one of numbers where every value is one, but for what is written where a value is missing; numbers
may have thousands separators, a decimal comma, or all the same currency or percent sign; true and false are 1 and 0.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.kinds.protocol import is_numbers, is_text
from influence_cli.data.plain_types import is_list, pc

# written where a number is missing; in a column of text they are texts like others (NA is Namibia, or North America)
MISSING = (
    *("?", "NA", "N/A", "n/a", "na", "N.A.", "<NA>", "#N/A", "NaT", "NULL", "Null", "null", "None", "none", "-", "--"),
    *(".", "missing"),
)
PLAIN, THOUSANDS, SPACED, COMMA, TRUTH = "1234.5", "1,234.5", "1 234.5", "1.234,5", "true"
UNITS = r"[$€£¥%]"
EXACT_WHOLE = float(1 << 53)  # the largest whole number up to which float64 holds every one
_DIGITS = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_FORMS = {
    PLAIN: rf"^({_DIGITS}|[+-]?([iI][nN][fF]([iI][nN][iI][tT][yY])?|[nN][aA][nN]))$",
    THOUSANDS: r"^[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?$",  # 0,123 is a decimal number
    SPACED: r"^[+-]?[1-9]\d{0,2}([ '\x{a0}\x{202f}]\d{3})+(\.\d*)?$",
    COMMA: r"^[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+$|^[+-]?[1-9]\d{0,2}(\.\d{3}){2,}$",
    TRUTH: r"(?i)^(true|false)$",
}
NUMBER = _FORMS[PLAIN]
_PADDED = r"^[+-]?0[0-9]"  # 007 is a name, not the number 7
_DOTTED = r"^[+-]?[1-9]\d{0,2}(\.\d{3})+$"  # 1.234, which is 1234 where the decimal mark is a comma
_DATE = (
    r"^\d{4}[-/.]\d{1,2}([-/.]\d{1,2}([ T].*)?)?$|^\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})([ T].*)?$|^\d{1,2}/\d{4}$"
    r"|^\d{1,2}\.?[- /]?\pL{3,9}\.?[- /,]+\d{2,4}$|^\pL{3,9}\.? (\d{1,2}[a-z]{0,2},? )?\d{4}$"
    r"|^\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?[aApP]\.?[mM]\.?)?$"
)


_VISIBLE, _NUMERIC = bytes(range(0x21, 0x7F)), b"0123456789.-eE"


def texts_in(values: pa.Array) -> pa.Array:
    """Text without spaces around it; null where nothing is written."""
    if written_in(values, _VISIBLE):
        return values
    trimmed = pc.call_function("utf8_trim_whitespace", [values])
    trimmed = _replaced(trimmed, "^\u2212", "-")  # as typesetters write minus
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, trimmed.type), trimmed)


def written_in(values: pa.Array, letters: bytes) -> bool:
    """Whether every text has a letter, and no byte but ``letters``: most columns are told so, and need no pattern.

    A pattern costs as much for three rows as for a thousand, which tells in tables of many columns.
    """
    width = {pa.string(): np.int32, pa.large_string(): np.int64}.get(values.type)
    if width is None or not len(values):
        return False
    _, ends, data = values.buffers()
    ends = np.frombuffer(ends, width)[values.offset : values.offset + len(values) + 1]
    if not (ends[1:] > ends[:-1]).all():  # an empty text, or a missing one
        return False
    return not data.slice(int(ends[0]), int(ends[-1] - ends[0])).to_pybytes().translate(None, letters)


def matches(values: pa.Array, pattern: str) -> pa.Array:
    """Whether each text matches."""
    return pc.call_function("match_substring_regex", [values], pc.MatchSubstringOptions(pattern))


def without_units(values: pa.Array) -> pa.Array:
    """Texts without a currency or percent sign at their ends."""
    ends = rf"^([+-]?)\s*{UNITS}\s*|\s*{UNITS}$"
    return pc.call_function("replace_substring_regex", [values], pc.ReplaceSubstringOptions(ends, r"\1"))


def as_numbers(texts: pa.Array, form: str, units: bool) -> NDArray[np.float64]:
    """The numbers [n] that texts of one form write; NaN where there is none or a missing value is written."""
    if units:
        texts = without_units(texts)
    if form == TRUTH:
        yes = pc.call_function("utf8_lower", [texts])
        return pc.cast(pc.if_else(pc.equal(yes, "true"), 1.0, pc.if_else(pc.equal(yes, "false"), 0.0, None)),
                       pa.float64()).to_numpy(zero_copy_only=False)  # fmt: skip
    if form == COMMA:
        texts = _replaced(_replaced(texts, r"\.", ""), ",", ".")
    elif form in (THOUSANDS, SPACED):
        texts = _replaced(texts, r"[, '\x{a0}\x{202f}]", "")
    if written_in(texts, _NUMERIC):
        try:
            return pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowException:
            pass  # some text is no number, such as 1.2.3: it is found by its form
    good = matches(texts, _FORMS[PLAIN])
    texts = _replaced(pc.if_else(good, texts, pa.scalar(None, texts.type)), r"^\+", "")
    return pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False)


def _replaced(texts: pa.Array, pattern: str, by: str) -> pa.Array:
    return pc.call_function("replace_substring_regex", [texts], pc.ReplaceSubstringOptions(pattern, by))


@dataclass
class Survey:
    """One column over all rows seen so far."""

    name: str
    most: int  # different values are counted as far as one more
    rows: int = 0
    missing: int = 0  # null, empty, or not a number (NaN) in a column of real numbers
    numbers: int = 0
    texts: int = 0
    booleans: int = 0
    dates: int = 0
    lists: int = 0
    whole: bool = True  # every number is an integer
    padded: bool = False
    least: int | None = None  # of integers, exactly
    low: float = math.inf
    high: float = -math.inf
    widths: set[int] = field(default_factory=set)
    values: set[str] = field(default_factory=set)  # different texts, up to ``most`` and one
    markers: set[str] = field(default_factory=set)  # of MISSING, that are written
    other: str | None = None  # a type that is none of these
    units: set[str] = field(default_factory=set)  # currencies and percent signs of numbers
    bare: int = 0  # different texts without
    strange: str = ""  # a text that is no number
    _forms: set[str] = field(default_factory=lambda: set(_FORMS) - {PLAIN})  # that fit every text that is no number
    _written: Counter[str] = field(default_factory=Counter)  # how many texts that are no plain numbers are such ones
    _signs: set[str] = field(default_factory=set)  # units of texts that are numbers; "" for none
    _odd: bool = False  # some text is no plain number
    _formed: bool = False  # ... nor one with a unit
    _decimal_point: bool = False
    _pointed: bool = False  # some plain number has a point
    _date: bool = True

    def add(self, column: pa.Array) -> None:
        """The next rows, of a plain type."""
        self.rows += len(column)
        kind = column.type
        if column.null_count == len(column):
            self.missing += len(column)
        elif is_text(kind):
            self._add_texts(column)
        elif pa.types.is_boolean(kind):
            self.missing += column.null_count
            self.booleans += len(column) - column.null_count
            self.low, self.high = min(self.low, 0.0), max(self.high, 1.0)
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
            self._add_numbers(column)
        elif is_numbers(kind) or is_list(kind):
            self._add_lists(column)
        elif pa.types.is_temporal(kind):
            self.missing += column.null_count
            self.dates += len(column) - column.null_count
        elif pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_large_binary(kind):
            texts = text_of_bytes(column)
            if texts is None:
                self.other = "bytes"
            else:
                self._add_texts(texts)
        else:
            self.other = "a structure" if pa.types.is_nested(kind) else str(kind)

    def _add_numbers(self, column: pa.Array) -> None:
        if pa.types.is_integer(column.type):
            found = pc.min_max(column).as_py()
            self.least = found["min"] if self.least is None else min(self.least, found["min"])
        values = pc.cast(column.drop_null(), pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        there = values[~np.isnan(values)]
        self.missing += len(column) - len(there)
        self._range(there)

    def _range(self, values: NDArray[np.float64]) -> None:
        self.numbers += len(values)
        values = values[np.isfinite(values)]
        if len(values):
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
            self.whole = self.whole and bool((values % 1 == 0).all())

    def _add_lists(self, column: pa.Array) -> None:
        values = column.drop_null()
        self.missing += column.null_count
        self.lists += len(values)
        self.widths.update(pc.unique(pc.list_value_length(values)).to_pylist())
        inner = column.type.value_type
        if not (pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)):
            try:
                pc.cast(values.flatten(), pa.float64())
            except (pa.ArrowException, TypeError):
                self.other = f"lists of {inner}"

    def _add_texts(self, column: pa.Array) -> None:
        there = texts_in(column).drop_null()
        self.missing += len(column) - len(there)
        self.texts += len(there)
        different = there.unique()
        if len(self.values) <= self.most:
            self.values.update(different[: self.most + 1].to_pylist())
        plain = matches(different, _FORMS[PLAIN])
        numbers = different.filter(plain)
        if len(numbers):
            if not written_in(numbers, b"123456789"):
                self._add_digits(numbers)
            found = as_numbers(numbers, PLAIN, False)
            self._range(found[~np.isnan(found)])
            self.bare += len(numbers)
            self._date = False
            self._signs.add("")
        if len(numbers) == len(different):
            return
        odd = different.filter(pc.invert(plain))
        marker = pc.is_in(odd, pa.array(MISSING, odd.type))
        self.markers.update(odd.filter(marker).to_pylist())
        odd = odd.filter(pc.invert(marker))
        if len(odd):
            bare = without_units(odd)
            plain = matches(bare, _FORMS[PLAIN])
            self._add_odd(odd, bare, plain)
            self._add_written(odd, bare, plain)

    def _add_digits(self, numbers: pa.Array) -> None:
        """What different texts that are plain numbers say of zeros before numbers and of points."""
        self.padded = self.padded or bool(pc.any(matches(numbers, _PADDED)).as_py())
        pointed = numbers.filter(matches(numbers, r"\."))
        self._decimal_point = self._decimal_point or pc.all(matches(pointed, _DOTTED)).as_py() is False
        self._pointed = self._pointed or len(pointed) > 0

    def _add_odd(self, odd: pa.Array, bare: pa.Array, plain: pa.Array) -> None:
        """Different texts that are neither plain numbers nor stand for a missing one.

        ``bare`` are the same without units, and ``plain`` says which of these are plain numbers.
        """
        self._odd = True
        self._date = self._date and bool(pc.all(matches(odd, _DATE)).as_py())
        with_units = odd.filter(pc.not_equal(bare, odd))
        self.bare += len(odd) - len(with_units)
        for sign in "$€£¥%" if len(with_units) else "":
            if pc.any(matches(with_units, "[$]" if sign == "$" else sign)).as_py():
                self.units.add(sign)
        self._range(as_numbers(bare.filter(plain), PLAIN, False))
        rest = bare.filter(pc.invert(plain))
        self._formed = self._formed or len(rest) > 0
        self.strange = self.strange or (rest[0].as_py() if len(rest) else "")
        self._forms &= {form for form in self._forms if bool(pc.all(matches(rest, _FORMS[form])).as_py() is not False)}
        for form in self._forms - {TRUTH} if len(rest) else ():
            found = as_numbers(rest, form, False)
            self.low, self.high = min(self.low, float(np.nanmin(found))), max(self.high, float(np.nanmax(found)))

    def _add_written(self, odd: pa.Array, bare: pa.Array, plain: pa.Array) -> None:
        """What the same texts say of how numbers are written."""
        fits = {form: matches(bare, _FORMS[form]) for form in (THOUSANDS, SPACED, COMMA)}
        other = pc.or_(pc.or_(fits[THOUSANDS], fits[SPACED]), fits[COMMA])
        self._written.update({form: fit.true_count for form, fit in fits.items()})
        for text in odd.filter(pc.or_(plain, other)).to_pylist() if len(self._signs) < 2 else ():
            self._signs.add(next((sign for sign in "$€£¥%" if sign in text), ""))

    def number_form(self, marks: str = "") -> tuple[str, str] | None:
        """How those of its texts that are numbers write them, whatever the others say; None where none is one."""
        if not self._signs:
            return self.form(marks)
        unit = "" if "" in self._signs else min(self._signs)
        if marks == "," and self._pointed and not self._decimal_point:
            return COMMA, unit
        forms = self._most_written - ({COMMA} if self._decimal_point else set())
        order = (COMMA, THOUSANDS, SPACED) if marks else (THOUSANDS, COMMA, SPACED)
        return next((form for form in order if form in forms), PLAIN), unit

    @property
    def _most_written(self) -> set[str]:
        """The forms that most of its numbers have, of those that are no plain ones."""
        most = max(self._written.values(), default=0)
        return {form for form, count in self._written.items() if count == most > 0}

    def numbers_in(self, texts: pa.Array, marks: str = "") -> NDArray[np.float64]:
        """The numbers [n] that texts of the column write in its form of numbers; NaN where a text is in none."""
        form = self.number_form(marks) or (PLAIN, "")
        bare = without_units(texts) if form[1] else texts
        fits = pc.or_(matches(bare, _FORMS[PLAIN]), matches(bare, _FORMS[form[0]]))
        return as_numbers(pc.if_else(fits, texts, pa.scalar(None, texts.type)), form[0], bool(form[1]))

    def form(self, marks: str = "") -> tuple[str, str] | None:
        """How its texts write numbers, and their unit; None where they are texts.

        ``marks``: ";" where columns are separated by semicolons, so that a comma before three digits is a decimal mark;
        "," where another column of the table has decimal commas for sure, so that a point is none either.
        """
        if self.padded or not self.texts or len(self.units) > 1 or (self.units and self.bare > 0):
            return None
        unit = next(iter(self.units), "")
        if not self._formed:
            if marks == "," and self._pointed and not self._decimal_point:
                return COMMA, unit
            return (PLAIN, unit) if self.numbers else None
        forms = self._forms - ({COMMA} if self._decimal_point else set()) - ({TRUTH} if self.numbers else set())
        order = (COMMA, THOUSANDS, SPACED, TRUTH) if marks else (THOUSANDS, COMMA, SPACED, TRUTH)
        found = next((form for form in order if form in forms), None)
        return None if found is None else (found, unit)

    @property
    def decimal_comma(self) -> bool:
        """Whether its numbers have a decimal comma for sure."""
        return self._formed and COMMA in self._forms and THOUSANDS not in self._forms and not self._decimal_point

    @property
    def comma_numbers(self) -> bool:
        """Whether those of its texts that are numbers have a decimal comma for sure."""
        return self._most_written == {COMMA} and not self._decimal_point

    @property
    def odd_numbers(self) -> bool:
        """Whether some text is no plain number."""
        return self._odd

    @property
    def is_date(self) -> bool:
        """Whether it holds dates or times."""
        return bool(self.dates) or (self.texts > 0 and self._odd and self._date)


def text_of_bytes(column: pa.Array) -> pa.Array | None:
    """Bytes that are all text in UTF-8, as text; None for others."""
    try:
        texts = pc.cast(pc.cast(column, pa.binary()), pa.string())
        return None if any("\0" in v for v in texts.drop_null()[:100].to_pylist()) else texts
    except pa.ArrowException:
        return None
