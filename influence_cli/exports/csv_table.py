"""CSV: the source's own bytes, row by row, but for what was edited; or a new table with the manifest's columns."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influence_cli.data.feature_names import names_of
from influence_cli.data.formulas import MARK, quoted, runs, said, unquoted
from influence_cli.data.kinds import KINDS
from influence_cli.data.label_readers import DELIMITERS, looks_listed
from influence_cli.data.manifest import Manifest
from influence_cli.data.sources.comments import comment_lines
from influence_cli.data.sources.text_files import csv_form
from influence_cli.errors import UsageError
from influence_cli.exports.matched import MatchedLines, match_lines, spellings, weight_column
from influence_cli.exports.protocol import OUTSIDE, ExportJob, Prepared, plain_rows

_BOM, UTF8 = b"\xef\xbb\xbf", ("utf-8", "utf-8-sig", "utf8")
_SUSPECT = {b"=", b"+", b"-", b"@", b"\t", b"\r", b"\n", b"'", b'"', b"\xef"}  # how a formula's raw field may begin


@dataclass
class Record:
    """One row as it is written: raw fields, quotes included, and the end of its line."""

    fields: list[bytes]
    end: bytes


def prepare(job: ExportJob) -> Prepared:
    """Check a CSV export: from the source where the manifest was made from one, otherwise from the manifest."""
    origin = job.made_from("csv")
    if origin is None:
        lines = _table(job, list(plain_rows(job, "csv")))
        count = sum(isinstance(v, str) and runs(v) for line in lines for v in line)
        if count:
            lines = _marked(lines, lambda v: quoted(v) if isinstance(v, str) else v)
        data = _new_table(lines, _delimiter(job.place))
        return Prepared(lambda place: place.write_bytes(data), len(lines) - 1, [said(count)] if count else [])
    source = origin.verified(job.folder)
    if _delimiter(source) != _delimiter(job.place):
        what = f"the source is {source.suffix} and the export would be {job.place.suffix}"
        raise UsageError(what, fix=f"name it {source.suffix}")
    encoding, mark_of_columns = csv_form(source, origin.columns)
    delimiter = mark_of_columns.encode()
    first = comment_lines(source, encoding, mark_of_columns)
    mark, header, records = _as_meant(*read_records(source, delimiter, encoding, first), delimiter)
    lines = match_lines(job, origin, source, len(records), "line")
    notes = list(lines.rows.notes)
    data = _in_encoding(mark + _edited(lines, header, records, notes, delimiter), encoding, str(job.place))
    return Prepared(lambda place: place.write_bytes(data), int(lines.rows.keep.sum()), notes)


def _delimiter(path: Path) -> bytes:
    return b"\t" if path.suffix.lower() == ".tsv" else b","


def _in_encoding(data: bytes, encoding: str, where: str) -> bytes:
    """UTF-8 in the source's own encoding.  Raises UsageError: a new label cannot be written in it."""
    if encoding in UTF8:
        return data
    try:
        return data.decode().encode(encoding)
    except UnicodeError as error:
        what = f"a label cannot be written in {encoding}, the encoding of the source"
        raise UsageError(what, where=where, fix="export as .jsonl, or save the source as UTF-8") from error


def read_records(
    path: Path, delimiter: bytes | None = None, encoding: str = "utf-8", first: int = 0
) -> tuple[bytes, Record, list[Record]]:
    """What stands before the header (a byte order mark, ``first`` lines), header and rows of a CSV file, in UTF-8.

    Empty lines are no rows.
    """
    delimiter, data = delimiter or _delimiter(path), path.read_bytes()
    if encoding not in UTF8:
        data = data.decode(encoding).encode()
    escaped = re.escape(delimiter)
    field = re.compile(rb'((?:"(?:[^"]+|"")*(?:"|\Z))?[^\r\n' + escaped + rb"]*)(" + escaped + rb"|\r\n|\r|\n|\Z)")
    line = re.compile(rb"([^\r\n]*)(\r\n|\r|\n|\Z)")
    records: list[Record] = []
    mark = _BOM if data.startswith(_BOM) else b""
    for _ in range(first):
        found = line.match(data, len(mark))
        assert found is not None
        mark = data[: found.end()]
    position = len(mark)
    while position < len(data):
        plain = line.match(data, position)
        assert plain is not None
        if b'"' not in plain[1]:  # quick: most lines have no quotes
            fields, end, position = plain[1].split(delimiter), plain[2], plain.end()
        else:
            fields, end = [], delimiter
            while end == delimiter:
                found = field.match(data, position)
                assert found is not None
                fields.append(found[1])
                end, position = found[2], found.end()
        if fields != [b""]:
            records.append(Record(fields, end))
    return mark, records[0], records[1:]


def _edited(lines: MatchedLines, header: Record, records: list[Record], notes: list[str], delimiter: bytes) -> bytes:
    """The bytes of the file after the edits."""
    rows, job = lines.rows, lines.job
    names = [text_of(f).strip() for f in header.fields]
    at, weight_at = names.index(lines.label), None if lines.weight is None else names.index(lines.weight)
    image_at = names.index(lines.image) if lines.image is not None and lines.moved else None
    written = spellings(rows.label_was, [r.fields[at] for r in records], str(lines.source))
    new_weights = weight_at is None and rows.reweighted.any()
    named = weight_column(lines.weight, names).encode()
    edited = [[*header.fields, named] if new_weights else header.fields]
    kept = np.flatnonzero(rows.keep).tolist()
    for k in kept:
        number = repr(float(rows.weight[k]))
        weight = _quoted(number.replace(".", ",") if lines.comma else number, delimiter)
        fields = list(records[k].fields)
        if rows.relabelled[k]:
            new = int(rows.label[k])
            fields[at] = written[new] if new in written else _quoted(job.edited.class_name(new), delimiter)
        if new_weights:
            fields.append(weight)
        elif weight_at is not None and rows.reweighted[k]:
            fields[weight_at] = weight
        if image_at is not None:
            fields[image_at] = _rewritten(fields[image_at], lines.rebased, delimiter)
        edited.append(fields)
    if image_at is not None:
        notes.append(f"relative paths in column {lines.image} count from {job.place.parent} now; {OUTSIDE}")
    edited, formulas = _guarded(edited, delimiter)
    notes += [said(formulas)] if formulas else []
    ends = [header.end, *(records[k].end or header.end for k in kept)]
    if kept and not records[-1].end:
        ends[-1] = b""
    return b"".join(delimiter.join(fields) + end for fields, end in zip(edited, ends, strict=True))


def _as_meant(
    mark: bytes, header: Record, records: list[Record], delimiter: bytes
) -> tuple[bytes, Record, list[Record]]:
    """The records of a table in which formulas have quotes before them, without those; others as they are."""
    names = [text_of(f, "surrogateescape") for f in header.fields]
    if MARK not in names:
        return mark, header, records
    at = names.index(MARK)

    for record in (header, *records):
        record.fields = [_rewritten(f, unquoted, delimiter) for k, f in enumerate(record.fields) if k != at]
    return mark, header, records


def _guarded(lines: list[list[bytes]], delimiter: bytes) -> tuple[list[list[bytes]], int]:
    """Raw lines with quotes before fields that a spreadsheet would run and the mark of that, and how many there are."""
    suspects = (f for line in lines for f in line if f[:1] in _SUSPECT)
    count = sum(runs(text_of(f, "surrogateescape")) for f in suspects)
    if not count:
        return lines, 0
    marked = _marked(lines, lambda f: _rewritten(f, quoted, delimiter) if f[:1] in _SUSPECT else f)
    return [[*line[:-1], str(line[-1]).encode()] for line in marked], count


def _marked(lines: Sequence[Sequence[Any]], quote: Callable[[Any], Any]) -> list[list[Any]]:
    """The lines with quotes where ``quote`` makes a new field, and a last column, the mark, that counts these."""
    made: list[list[Any]] = []
    for line in lines:
        written = [quote(field) for field in line]
        made.append([*written, sum(a is not b for a, b in zip(line, written, strict=True)) if made else MARK])
    return made


def _rewritten(raw: bytes, change: Callable[[str], str], delimiter: bytes) -> bytes:
    """A raw field after a change of its text; its own bytes where that changes nothing."""
    text = text_of(raw, "surrogateescape")
    return raw if (new := change(text)) == text else _quoted(new, delimiter)


def text_of(raw: bytes, errors: str = "strict") -> str:
    """The text of a raw field, without its quotes."""
    found = re.match(rb'"((?:[^"]+|"")*)(?:"|\Z)(.*)\Z', raw, re.DOTALL)
    return (raw if found is None else found[1].replace(b'""', b'"') + found[2]).decode(errors=errors)


def _quoted(text: str, delimiter: bytes) -> bytes:
    """A field, in quotes where it needs them."""
    if any(c in text for c in ('"', "\r", "\n", delimiter.decode())) or text != text.strip() or text == "":
        text = '"' + text.replace('"', '""') + '"'
    return text.encode(errors="surrogateescape")


def _table(job: ExportJob, rows: list[dict[str, object]]) -> list[list[object]]:
    """The lines of a CSV, header first, with one column a feature, by name; missing values are empty."""
    kinds = {column: kind for kind in KINDS.values() for column in kind.columns}
    several = _several_as_text(job.edited.manifest)
    lines: list[list[object]] = [[]]
    for name, value in rows[0].items() if rows else ():
        wide = len(value) if name in kinds and isinstance(value, list) else None
        known = None if wide is None else names_of(job.edited.manifest, wide)
        lines[0] += [name] if wide is None else known or [kinds[name].value_name(name, k) for k in range(wide)]
    for row in rows:
        lines.append([])
        for name, value in row.items():
            if name not in kinds and isinstance(value, list):
                value = several(value)
            lines[-1] += value if isinstance(value, list) else ["" if value is None else value]
    return lines


def _several_as_text(manifest: Manifest) -> Callable[[list[Any]], str]:
    """How several labels of a row stand in one field, so that ``influence manifest`` reads the same ones again.

    With semicolons between; as a list where a name holds what stands between labels, or labels are 0 and 1 alone.

    Raises:
        UsageError: no text stands for one of the names, which the function that is given back says.
    """
    names = manifest.classes
    if names is not None and all(name.strip() == name and not any(d in name for d in DELIMITERS) for name in names):
        return ";".join

    def listed(value: list[Any]) -> str:
        text = str(value)
        if value and not looks_listed(text):
            what = f"no text of a table stands for the labels {text}: a name holds both quotes, or a line's end"
            raise UsageError(what, where=manifest.source, fix="export as .jsonl, which holds lists")
        return text

    return listed


def _new_table(lines: list[list[object]], delimiter: bytes) -> bytes:
    out: list[str] = []
    for line in lines:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=delimiter.decode(), lineterminator="\r\n").writerow(line)  # so that both are quoted
        out.append(text.getvalue().removesuffix("\r\n") + "\n")
    return "".join(out).encode()
