"""CSV: the source's own bytes, row by row, but for what was edited; or a new table with the manifest's columns."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from influence_cli.data.formulas import MARK, quoted, runs, said, unquoted
from influence_cli.data.kinds import KINDS
from influence_cli.data.kinds.protocol import Kind
from influence_cli.data.sources.origin import Origin
from influence_cli.data.sources.protocol import IMAGE_NAMES, LABEL_NAMES, pick
from influence_cli.errors import UsageError
from influence_cli.exports.matched import Matched, match_lines, spellings
from influence_cli.exports.protocol import ExportJob, Prepared, plain_rows, rebase

_BOM = b"\xef\xbb\xbf"
_SUSPECT = {b"=", b"+", b"-", b"@", b"\t", b"\r", b"\n", b"'", b'"', b"\xef"}  # how a formula's raw field may begin


@dataclass
class Record:
    """One row as it is written: raw fields, quotes included, and the end of its line."""

    fields: list[bytes]
    end: bytes

    def text(self, position: int) -> str:
        """A field without its quotes."""
        return _unquoted(self.fields[position])


def prepare(job: ExportJob) -> Prepared:
    """Check a CSV export: from the source where the manifest was made from one, otherwise from the manifest."""
    origin = job.made_from("csv")
    if origin is None:
        rows = list(plain_rows(job, "csv"))
        lines, count = _without_formulas(_table(rows))
        data = _new_table(lines, _delimiter(job.place))
        return Prepared(lambda place: place.write_bytes(data), len(rows), [said(count)] if count else [])
    source = origin.verified(job.folder)
    if _delimiter(source) != _delimiter(job.place):
        raise UsageError(
            f"the source is {source.suffix} and the export would be {job.place.suffix}",
            fix=f"name it {source.suffix}",
        )
    mark, header, records = _as_meant(*read_records(source), _delimiter(source))
    matched = match_lines(job, origin, source, len(records), "line")
    notes = list(matched.notes)
    data = mark + _edited(job, origin, source, header, records, matched, notes)
    return Prepared(lambda place: place.write_bytes(data), int(matched.keep.sum()), notes)


def _lists() -> dict[str, Kind]:
    """The kinds whose columns may be lists of numbers, by column."""
    return {column: kind for kind in KINDS.values() for column in kind.columns}


def _delimiter(path: Path) -> bytes:
    return b"\t" if path.suffix.lower() == ".tsv" else b","


def read_records(path: Path) -> tuple[bytes, Record, list[Record]]:
    """The byte order mark, header and rows of a CSV or TSV file, as they are written; empty lines are no rows."""
    delimiter, data = _delimiter(path), path.read_bytes()
    escaped = re.escape(delimiter)
    field = re.compile(rb'((?:"(?:[^"]+|"")*(?:"|\Z))?[^\r\n' + escaped + rb"]*)(" + escaped + rb"|\r\n|\r|\n|\Z)")
    line = re.compile(rb"([^\r\n]*)(\r\n|\r|\n|\Z)")
    records: list[Record] = []
    mark = _BOM if data.startswith(_BOM) else b""
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


def _edited(
    job: ExportJob,
    origin: Origin,
    source: Path,
    header: Record,
    records: list[Record],
    matched: Matched,
    notes: list[str],
) -> bytes:
    """The bytes of the file after the edits."""
    names = [_unquoted(f) for f in header.fields]
    label = pick(names, origin.columns.label, LABEL_NAMES, "label", str(source))
    assert label is not None
    at, weight_at = names.index(label), names.index("weight") if "weight" in names else None
    image = None if origin.columns.features else pick(names, origin.columns.image, IMAGE_NAMES, "image", str(source))
    image_at = None if image is None else names.index(image)
    written = spellings(matched.label_was, [r.fields[at] for r in records], str(source))
    moved = source.parent.resolve() != job.place.parent.resolve()
    weighted = matched.reweighted.any()
    delimiter = _delimiter(source)
    if weighted and weight_at is None:
        header = Record([*header.fields, b"weight"], header.end)
    kept = np.flatnonzero(matched.keep).tolist()
    last_end = records[-1].end if records else b""
    for k in kept:
        record = records[k]
        fields = list(record.fields)
        if matched.relabelled[k]:
            new = int(matched.label[k])
            fields[at] = written[new] if new in written else _quoted(job.edited.class_name(new), delimiter)
        if weighted and weight_at is None:
            fields.append(repr(float(matched.weight[k])).encode())
        elif weight_at is not None and matched.reweighted[k]:
            fields[weight_at] = repr(float(matched.weight[k])).encode()
        if moved and image_at is not None:
            path = record.text(image_at)
            there = rebase(path, source.parent, job.place.parent)
            if there != path:
                fields[image_at] = _quoted(there, delimiter)
        records[k] = Record(fields, record.end)
    if moved and image_at is not None:
        notes.append(f"relative paths in column {image} count from {job.place.parent} now")
    fields, formulas = _guarded([r.fields for r in (header, *(records[k] for k in kept))], delimiter)
    notes += [said(formulas)] if formulas else []
    lines = [delimiter.join(line) for line in fields]
    ends = [records[k].end or header.end for k in kept]
    if kept and not last_end:
        ends[-1] = b""
    return b"".join(line + end for line, end in zip(lines, [header.end, *ends], strict=True))


def _as_meant(
    mark: bytes, header: Record, records: list[Record], delimiter: bytes
) -> tuple[bytes, Record, list[Record]]:
    """The records of a table in which formulas have quotes before them, without those; others as they are."""
    names = [_unquoted(f, "surrogateescape") for f in header.fields]
    if MARK not in names:
        return mark, header, records
    at = names.index(MARK)

    def meant(record: Record) -> Record:
        fields = [_rewritten(f, unquoted, delimiter) for k, f in enumerate(record.fields) if k != at]
        return Record(fields, record.end)

    return mark, meant(header), [meant(record) for record in records]


def _guarded(lines: list[list[bytes]], delimiter: bytes) -> tuple[list[list[bytes]], int]:
    """Raw lines with quotes before fields that a spreadsheet would run and the mark of that, and how many there are."""
    suspects = (f for line in lines for f in line if f[:1] in _SUSPECT)
    count = sum(runs(_unquoted(f, "surrogateescape")) for f in suspects)
    if not count:
        return lines, 0
    made: list[list[bytes]] = []
    for line in lines:
        written = [_rewritten(f, quoted, delimiter) if f[:1] in _SUSPECT else f for f in line]
        changed = sum(a != b for a, b in zip(line, written, strict=True))
        made.append([*written, str(changed).encode() if made else MARK.encode()])
    return made, count


def _rewritten(raw: bytes, change: Callable[[str], str], delimiter: bytes) -> bytes:
    """A raw field after a change of its text; its own bytes where that changes nothing."""
    text = _unquoted(raw, "surrogateescape")
    return raw if (new := change(text)) == text else _quoted(new, delimiter)


def _unquoted(raw: bytes, errors: str = "strict") -> str:
    found = re.match(rb'"((?:[^"]+|"")*)(?:"|\Z)(.*)\Z', raw, re.DOTALL)
    return (raw if found is None else found[1].replace(b'""', b'"') + found[2]).decode(errors=errors)


def _quoted(text: str, delimiter: bytes) -> bytes:
    """A field, in quotes where it needs them."""
    if any(c in text for c in ('"', "\r", "\n", delimiter.decode())) or text != text.strip() or text == "":
        text = '"' + text.replace('"', '""') + '"'
    return text.encode(errors="surrogateescape")


def _table(rows: list[dict[str, object]]) -> list[list[object]]:
    """The lines of a CSV, header first, with one column a feature; missing values are empty."""
    header: list[object] = []
    for name, value in rows[0].items() if rows else ():
        kind = _lists().get(name) if isinstance(value, list) else None
        wide = len(value) if isinstance(value, list) else 1
        header += [name] if kind is None else [kind.value_name(name, k) for k in range(wide)]
    return [header, *_flat(rows)]


def _without_formulas(lines: list[list[object]]) -> tuple[list[list[object]], int]:
    """The lines with quotes before texts that a spreadsheet would run and the mark of that, and how many there are."""
    count = sum(isinstance(v, str) and runs(v) for line in lines for v in line)
    if not count:
        return lines, 0
    made: list[list[object]] = []
    for line in lines:
        written = [quoted(v) if isinstance(v, str) else v for v in line]
        made.append([*written, sum(a is not b for a, b in zip(line, written, strict=True)) if made else MARK])
    return made, count


def _new_table(lines: list[list[object]], delimiter: bytes) -> bytes:
    out, line_out = io.StringIO(newline=""), io.StringIO(newline="")
    writer = csv.writer(line_out, delimiter=delimiter.decode(), lineterminator="\r\n")  # so that both are quoted
    for line in lines:
        writer.writerow(line)
        out.write(line_out.getvalue().removesuffix("\r\n") + "\n")
        line_out.seek(0)
        line_out.truncate()
    return out.getvalue().encode()


def _flat(rows: list[dict[str, object]]) -> Iterator[list[object]]:
    lists = _lists()
    for row in rows:
        flat: list[object] = []
        for name, value in row.items():
            flat += value if name in lists and isinstance(value, list) else ["" if value is None else value]
        yield flat
