"""CSV: the source's own bytes, row by row, but for what was edited; or a new table with the manifest's columns."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from influence_cli.data.sources import open_source
from influence_cli.data.sources.origin import Origin
from influence_cli.data.sources.protocol import IMAGE_NAMES, LABEL_NAMES, pick
from influence_cli.errors import ManifestError, UsageError
from influence_cli.exports.matched import Matched, match, spellings
from influence_cli.exports.plain import plain_rows
from influence_cli.exports.protocol import Prepared, Task, rebase, same_images

_BOM = b"\xef\xbb\xbf"


@dataclass
class Record:
    """One row as it is written: raw fields, quotes included, and the end of its line."""

    fields: list[bytes]
    end: bytes

    def text(self, position: int) -> str:
        """A field without its quotes."""
        return _unquoted(self.fields[position])


def prepare(task: Task) -> Prepared:
    """Check a CSV export: from the source where the manifest was made from one, otherwise from the manifest."""
    origin = task.made_from("csv")
    if origin is None:
        rows = list(plain_rows(task, "csv"))
        return Prepared(lambda place: place.write_bytes(_new_table(rows, _delimiter(task.place))), len(rows))
    source = origin.verified(task.folder)
    if _delimiter(source) != _delimiter(task.place):
        raise UsageError(
            f"the source is {source.suffix} and the export would be {task.place.suffix}",
            fix=f"name it {source.suffix}",
        )
    mark, header, records = read_records(source)
    matched = match(task, open_source(str(source), origin.columns), str(source))
    if len(records) != len(matched.keep):
        raise ManifestError(
            f"{len(matched.keep)} rows were read and {len(records)} lines are there",
            where=str(source),
            fix="write it with one row a line, or export as another form",
        )
    same_images(task, source.parent)
    notes = list(matched.notes)
    data = mark + _edited(task, origin, source, header, records, matched, notes)
    return Prepared(lambda place: place.write_bytes(data), int(matched.keep.sum()), notes)


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
    task: Task, origin: Origin, source: Path, header: Record, records: list[Record], matched: Matched, notes: list[str]
) -> bytes:
    """The bytes of the file after the edits."""
    names = [_unquoted(f) for f in header.fields]
    label = pick(names, origin.columns.label, LABEL_NAMES, "label", str(source))
    assert label is not None
    at, weight_at = names.index(label), names.index("weight") if "weight" in names else None
    image = None if origin.columns.features else pick(names, origin.columns.image, IMAGE_NAMES, "image", str(source))
    image_at = None if image is None else names.index(image)
    written = spellings(matched.label_was, [r.fields[at] for r in records], str(source))
    moved = source.parent.resolve() != task.place.parent.resolve()
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
            fields[at] = written[new] if new in written else _quoted(task.edited.class_name(new), delimiter)
        if weighted and weight_at is None:
            fields.append(repr(float(matched.weight[k])).encode())
        elif weight_at is not None and matched.reweighted[k]:
            fields[weight_at] = repr(float(matched.weight[k])).encode()
        if moved and image_at is not None:
            path = record.text(image_at)
            there = rebase(path, source.parent, task.place.parent)
            if there != path:
                fields[image_at] = _quoted(there, delimiter)
        records[k] = Record(fields, record.end)
    if moved and image_at is not None:
        notes.append(f"relative paths in column {image} count from {task.place.parent} now")
    lines = [delimiter.join(r.fields) for r in (header, *(records[k] for k in kept))]
    ends = [records[k].end or header.end for k in kept]
    if kept and not last_end:
        ends[-1] = b""
    return b"".join(line + end for line, end in zip(lines, [header.end, *ends], strict=True))


def _unquoted(raw: bytes) -> str:
    found = re.match(rb'"((?:[^"]+|"")*)(?:"|\Z)(.*)\Z', raw, re.DOTALL)
    return (raw if found is None else found[1].replace(b'""', b'"') + found[2]).decode()


def _quoted(text: str, delimiter: bytes) -> bytes:
    """A field, in quotes where it needs them."""
    if any(c in text for c in ('"', "\r", "\n", delimiter.decode())) or text != text.strip() or text == "":
        text = '"' + text.replace('"', '""') + '"'
    return text.encode()


def _new_table(rows: list[dict[str, object]], delimiter: bytes) -> bytes:
    """A CSV with one column a feature; missing values are empty."""
    out = io.StringIO()
    names = list(rows[0]) if rows else []
    wide = len(rows[0]["features"]) if "features" in names else 0  # pyright: ignore[reportArgumentType]
    header = [h for n in names for h in ([f"feature_{k}" for k in range(wide)] if n == "features" else [n])]
    writer = csv.writer(out, delimiter=delimiter.decode(), lineterminator="\n")
    writer.writerow(header)
    writer.writerows(_flat(rows))
    return out.getvalue().encode()


def _flat(rows: list[dict[str, object]]) -> Iterator[list[object]]:
    for row in rows:
        flat: list[object] = []
        for name, value in row.items():
            flat += value if name == "features" and isinstance(value, list) else ["" if value is None else value]
        yield flat
