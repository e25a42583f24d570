"""CSV, TSV, Excel and lines of JSON as tables of what is written in them; pandas reads the first three.

Nothing is guessed of a value here: what stands in a CSV is text.  Large files are read in chunks.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from influence_cli.data.formulas import MARK, as_meant
from influence_cli.data.frames import is_missing
from influence_cli.data.request import Columns
from influence_cli.data.sources.comments import comment_lines
from influence_cli.data.sources.mixed_values import as_column
from influence_cli.data.sources.spooled import Spooled
from influence_cli.data.tables import refuse_twins
from influence_cli.errors import ManifestError, UsageError, nearest
from influence_cli.store.keys import parse_json

JSON_LINES, EXCEL = (".jsonl", ".ndjson"), (".xlsx", ".xlsm", ".xls", ".ods")
TEXT_TABLES = (".csv", ".tsv", *JSON_LINES, ".json", *EXCEL)
DELIMITERS = (",", ";", "\t", "|")
CHUNK = 16_384  # rows
HELD = 64 << 20  # bytes of a file that is held, rather than read again for every pass
_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))


@dataclass(frozen=True)
class TextTable:
    """A file's rows as tables of one schema, again at every call of ``chunks``."""

    chunks: Callable[[], Iterator[pa.Table]]
    marks: str = ""  # ";" where columns are separated by semicolons, see ``Survey.form``
    taken: tuple[str, ...] = ()  # how it was read, where that was found out


def open_text(path: Path, columns: Columns) -> TextTable:
    """The file behind a path, by its suffix.

    Raises:
        ManifestError: it cannot be parsed, is not in the encoding, has no rows, or two columns of one name.
        UsageError: an option is of another form of table.
    """
    suffix = path.suffix.lower()
    of = {"sheet": EXCEL, "delimiter": (".csv", ".tsv"), "encoding": (".csv", ".tsv", *JSON_LINES, ".json")}
    refuse_options(columns, [name for name, suffixes in of.items() if suffix not in suffixes], str(path))
    if suffix in JSON_LINES or suffix == ".json":
        tables = list(_json_tables(path, suffix == ".json", columns.encoding))
        return TextTable(lambda: iter(tables))
    if suffix in EXCEL:
        return _excel(path, columns)
    return _csv(path, columns)


def read_text_file(path: Path, columns: Columns) -> pa.Table:
    """The rows of a file as one table.  Raises ManifestError: as ``open_text``."""
    return pa.concat_tables(open_text(path, columns).chunks())


def refuse_options(columns: Columns, names: Sequence[str], where: str) -> None:
    """Refuse (UsageError) options of text files that say nothing of this source."""
    for name in names:
        if getattr(columns, name) is not None:
            raise UsageError(f"--{name} says nothing of such a source", where=where, fix=f"leave --{name} out")


# -- CSV and TSV -------------------------------------------------------------------------------------------------------


def csv_form(path: Path, columns: Columns) -> tuple[str, str]:
    """Encoding and delimiter: asked for, or found out.  Raises UsageError: the delimiter is no single character."""
    encoding = _encoding(path) if columns.encoding is None else columns.encoding
    delimiter = columns.delimiter
    if delimiter is None:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(path, encoding)
    delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
    if len(delimiter.encode()) != 1:
        raise UsageError(f"--delimiter {delimiter!r} is no single character", fix="pass --delimiter ';'")
    return encoding, delimiter


def text_encoding(path: Path, columns: Columns) -> str:
    """Encoding of a file of JSON: asked for, or found out."""
    return _encoding(path) if columns.encoding is None else columns.encoding


def _csv(path: Path, columns: Columns) -> TextTable:
    encoding, delimiter = csv_form(path, columns)
    names = _header(path, encoding, delimiter)
    _refuse_uneven(path, encoding, delimiter)
    read = lambda: _csv_chunks(path, names, delimiter, encoding)  # noqa: E731
    if path.stat().st_size <= HELD:
        held = list(read())
        read = lambda: iter(held)  # noqa: E731
    else:
        read = Spooled(read)
    comments = comment_lines(path, encoding, delimiter)
    taken = [f"lines before the names of columns, which begin with #, are comments ({comments})"] if comments else []
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    if delimiter != usual:
        taken.append(f"columns are separated by {'tabs' if delimiter == chr(9) else repr(delimiter)}")
    if encoding not in ("utf-8", "utf-8-sig"):
        taken.append(f"the text is {encoding}")
    return TextTable(read, ";" if delimiter == ";" else "", tuple(taken))


def _encoding(path: Path) -> str:
    """By the mark at the beginning, or UTF-16 where every other byte is null; otherwise UTF-8."""
    with path.open("rb") as handle:
        head = handle.read(4096)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if len(head) > 3 and head[1::2].count(0) > 0.4 * len(head[1::2]):
        return "utf-16-le"
    return "utf-16-be" if len(head) > 3 and head[::2].count(0) > 0.4 * len(head[::2]) else "utf-8"


def _lines(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not empty, each with the number of its last line."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        first = comment_lines(path, encoding, delimiter)
        with path.open(encoding=encoding, newline="") as handle:
            reader = csv.reader(itertools.islice(handle, first, None), delimiter=delimiter)
            yield from ((first + reader.line_num, row) for row in reader if row)
    except (UnicodeError, LookupError) as error:
        raise _not_in(path, encoding, error) from error
    except csv.Error as error:
        raise _unparsed(path, error) from error
    finally:
        csv.field_size_limit(limit)


def _refuse_uneven(path: Path, encoding: str, delimiter: str) -> None:
    """Refuse a file without rows, or a row of another length: pandas would fill or cut it without a word."""
    width, rows = 0, -1
    for line, row in _lines(path, encoding, delimiter):
        width, rows = width or len(row), rows + 1
        if len(row) != width:
            few = "fewer" if len(row) < width else "more"
            what = f"cannot be parsed: a row has {few} fields than the first line ({len(row)}, not {width})"
            fix = "write every column in every row, in quotes where it holds a separator, or pass --delimiter"
            if len(row) == width + 1:
                fix += "; where rows begin with a name of their own, as R writes them, name that column too"
            raise ManifestError(what, where=f"{path}, line {line}", fix=fix)
    if rows < 1:
        raise ManifestError("the file has no rows", where=str(path), fix="give a file with a row for each example")


def _delimiter(path: Path, encoding: str) -> str:
    """The mark that divides the first lines into the most fields, the same number of them in each."""
    best, most = ",", 1
    for mark in DELIMITERS:
        widths = [len(row) for (_, row), _ in zip(_lines(path, encoding, mark), range(20), strict=False)]
        even = len(widths) > 0 and all(w == widths[0] for w in widths[: max(1, len(widths) - 1)])
        if even and widths[0] > most:
            best, most = mark, widths[0]
    return best


def _header(path: Path, encoding: str, delimiter: str) -> list[str]:
    """The names of the columns; those without one are called as pandas calls them.  Refuses one name twice."""
    names = [name.strip() for name in next(_lines(path, encoding, delimiter), (0, []))[1]]
    if names and re.fullmatch("\ufeff?sep=.?", names[0]):
        fix = "take the first line out: it names the separator, which is found out"
        raise ManifestError(f"the first line is {names[0]}", where=str(path), fix=fix)
    names[:1] = [name.removeprefix("\ufeff").removeprefix("ï»¿") for name in names[:1]]  # where the encoding was given
    names = [name or f"Unnamed: {k}" for k, name in enumerate(names) if name != MARK]
    refuse_twins(names, str(path))
    return names


def _csv_chunks(path: Path, names: list[str], delimiter: str, encoding: str) -> Iterator[pa.Table]:
    import pandas as pd

    schema = pa.schema([(name, pa.string()) for name in names])
    try:
        first = comment_lines(path, encoding, delimiter)
        meant = as_meant(path, delimiter, first)
        source: Any = path if isinstance(meant, Path) else io.BytesIO(meant.read())
        if first and source is path:
            source = path.open(encoding=encoding, newline="")
            for _ in range(first):
                source.readline()
        chunks = pd.read_csv(
            source, sep=delimiter, header=0, names=names, index_col=False, dtype=str, keep_default_na=False,
            na_values=[], encoding=encoding if isinstance(source, Path) else "utf-8", chunksize=CHUNK, engine="c",
        )  # fmt: skip
        with chunks, source if isinstance(source, io.IOBase) else contextlib.nullcontext():
            for frame in chunks:
                yield pa.Table.from_pandas(frame, schema, preserve_index=False).replace_schema_metadata(None)
    except (UnicodeError, LookupError) as error:
        raise _not_in(path, encoding, error) from error
    except pd.errors.EmptyDataError:
        return
    except (pd.errors.ParserError, pa.ArrowInvalid, OSError, ValueError) as error:
        raise _unparsed(path, error) from error


def _unparsed(path: Path, error: Exception) -> ManifestError:
    why = str(error).strip().replace("\n", " ")
    return ManifestError(f"cannot be parsed ({why})", where=str(path), fix="check the file, or pass --delimiter")


def _not_in(path: Path, encoding: str, error: Exception) -> ManifestError:
    if isinstance(error, LookupError):
        return ManifestError(f"no encoding is called {encoding!r}", where=str(path), fix="pass --encoding latin-1")
    what = f"the text is not {encoding.upper().removesuffix('-SIG')}"
    fix = "pass --encoding latin-1 (or what it is, such as cp1252 or utf-16), or save it as UTF-8"
    return ManifestError(what, where=str(path), fix=fix)


# -- Excel -------------------------------------------------------------------------------------------------------------


def _excel(path: Path, columns: Columns) -> TextTable:
    import pandas as pd

    try:
        with pd.ExcelFile(path) as book:
            sheets = [str(s) for s in book.sheet_names]
            if columns.sheet is not None and columns.sheet not in sheets:
                raise ManifestError(f"no sheet {columns.sheet!r}", where=str(path), fix=nearest(columns.sheet, sheets))
            sheet = columns.sheet or sheets[0]
            how: dict[str, Any] = {"header": None, "dtype": object, "keep_default_na": False, "na_values": [""]}
            frame = pd.read_excel(book, sheet_name=sheet, **how)
    except ImportError as error:
        needed = "openpyxl" if path.suffix.lower() in (".xlsx", ".xlsm") else str(error).split("'")[1]
        what = f"cannot make a manifest from Excel without the package {needed}"
        raise ManifestError(
            what, where=str(path), fix=f"pip install {needed} (the extra excel has openpyxl), or save it as CSV"
        ) from error
    except ManifestError:
        raise
    except Exception as error:  # readers of such files raise whatever a damaged one makes them stumble over
        what = f"cannot make a manifest from it: it is no Excel file that can be read ({error})"
        raise ManifestError(what, where=str(path), fix="save it again, or as CSV") from error
    rows = frame.to_numpy(dtype=object)
    filled = np.array([[not is_missing(v) for v in row] for row in rows], dtype=bool).reshape(rows.shape).sum(axis=1)
    start = int(np.argmax(filled >= min(2, filled.max(initial=0)))) if len(rows) else 0  # a title has one cell
    keep = (np.arange(len(rows)) >= start) & (filled > 0)
    rows, passed = rows[keep], int((~keep).sum())
    if len(rows) < 2:
        fix = "give a sheet with names in its first row and a row for each example"
        raise ManifestError("the file has no rows", where=f"{path}, sheet {sheet}", fix=fix)
    named = [("" if is_missing(v) else str(v).strip()) or f"Unnamed: {k}" for k, v in enumerate(rows[0])]
    refuse_twins(named, str(path))
    columns_of = {name: [None if is_missing(v) else v for v in rows[1:, k]] for k, name in enumerate(named)}
    table = pa.table({name: as_column(values, name, str(path)) for name, values in columns_of.items()})
    others = [s for s in sheets if s != sheet]
    taken = [f"sheet {sheet} is read, and not {', '.join(others)}; --sheet reads another"] if others else []
    if passed:
        taken.append(
            f"{passed} row{'s' if passed > 1 else ''} of the sheet are empty or stand before the names of columns"
        )
    return TextTable(lambda: iter([table]), taken=tuple(taken))


# -- JSON --------------------------------------------------------------------------------------------------------------


def _json_tables(path: Path, whole: bool, encoding: str | None) -> Iterator[pa.Table]:
    """Tables of the objects in a file: one a line, or with ``whole`` a list of them.  A value that is missing is null.

    Raises:
        ManifestError: a line is no JSON object; names the line.
    """
    rows = list(_objects(path, whole, _encoding(path) if encoding is None else encoding))
    if not rows:
        raise ManifestError("the file has no rows", where=str(path), fix="give a file with a row for each example")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: as_column([row.get(name) for row in rows], name, str(path)) for name in names}
    table = pa.table(columns)
    for first in range(0, len(rows), CHUNK):
        yield table.slice(first, CHUNK)


def _objects(path: Path, whole: bool, encoding: str) -> Iterator[dict[str, Any]]:
    fix = 'write one object a line, such as {"a": 1, "label": 0}'
    try:
        text = path.read_bytes().decode(encoding).removeprefix("\ufeff")
    except (UnicodeError, LookupError) as error:
        raise _not_in(path, encoding, error) from error
    except OSError as error:
        raise ManifestError(f"cannot be read ({error.strerror})", where=str(path), fix="check the file") from error
    if whole:
        try:
            value = parse_json(text, _of_pairs)
        except ValueError as error:
            raise ManifestError(f"cannot be parsed ({error})", where=str(path), fix="check the file") from error
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise ManifestError("it is no list of objects", where=str(path), fix="write a list of objects, or .jsonl")
        yield from value
        return
    decoder, position, row = json.JSONDecoder(strict=False, object_pairs_hook=_of_pairs), 0, 0
    while position < len(text):
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
        if position == len(text):
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, position) + 1
            raise ManifestError(f"cannot be parsed ({error})", where=f"{path}, line {line}", fix=fix) from error
        if not isinstance(value, dict):
            raise ManifestError(f"row {row} is no object", where=f"{path}, row {row}", fix=fix)
        yield value
        row += 1


def _of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON.  Raises ValueError: two values have one name, or a name is no text that can be written."""
    value = dict(pairs)
    odd = next((name for name in value if not name.isascii() and name != name.encode(errors="replace").decode()), None)
    if odd is not None:
        raise ValueError(f"the name {odd!r} holds half a character")
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two values are called {next(n for n in names if names.count(n) > 1)!r}")
    return value
