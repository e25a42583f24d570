"""JSON, lines or a list: the source's own text, object by object, but for what was edited; or new objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from influence_cli.errors import ManifestError
from influence_cli.exports.matched import MatchedLines, match_lines, spellings, weight_column
from influence_cli.exports.protocol import OUTSIDE, ExportJob, Prepared, plain_rows

_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
_DECODER = json.JSONDecoder(strict=False)  # control characters in texts stay as they are


@dataclass
class Record:
    """One object as it is written, and where each of its values stands in that text."""

    text: str
    spans: dict[str, tuple[int, int]]

    def raw(self, name: str) -> str:
        """A value as it is written; null where there is none."""
        return self.text[slice(*self.spans[name])] if name in self.spans else "null"

    def replaced(self, values: dict[str, str]) -> str:
        """The object's text with other values; those that it has not are appended."""
        text = self.text
        for name in sorted(values.keys() & self.spans, key=self.spans.__getitem__, reverse=True):
            start, end = self.spans[name]
            text = text[:start] + values[name] + text[end:]
        for name, value in values.items():
            if name not in self.spans:
                body = text[: text.rindex("}")].rstrip()
                text = f"{body}{'' if body.endswith('{') else ', '}{json.dumps(name, ensure_ascii=False)}: {value}}}"
        return text


def prepare(job: ExportJob) -> Prepared:
    """Check a JSONL export: from the source where the manifest was made from one, otherwise from the manifest."""
    return _prepared(job, "jsonl")


def prepare_list(job: ExportJob) -> Prepared:
    """Check an export of one list of objects, as ``prepare``."""
    return _prepared(job, "json")


def _prepared(job: ExportJob, form: str) -> Prepared:
    origin = job.made_from(form)
    if origin is None:
        return _lines((json.dumps(row, ensure_ascii=False, default=str) for row in plain_rows(job, form)), [], form)
    source = origin.verified(job.folder)
    records = read_objects(source)
    names = list(dict.fromkeys(n for record in records for n in record.spans))
    lines = match_lines(job, origin, source, len(records), "object")
    moved = [f"relative paths in {lines.image} count from {job.place.parent} now; {OUTSIDE}"] if lines.moved else []
    return _lines(_edited(lines, records, names), [*lines.rows.notes, *moved], form)


def _lines(lines: Iterable[str], notes: list[str], form: str) -> Prepared:
    """A line an object; of a list with commas between, in brackets."""
    written = list(lines)
    text = "".join(f"{line}\n" for line in written) if form == "jsonl" else "[\n" + ",\n".join(written) + "\n]\n"
    return Prepared(lambda place: place.write_bytes(text.encode()), len(written), notes)


def read_objects(path: Path) -> list[Record]:
    """The objects of a file of JSON, lines or a list, each as it is written.  Raises ManifestError: it is not JSON."""
    records: list[Record] = []
    try:
        text = path.read_bytes().decode()
        position = _after_space(text, 0)
        listed = text.startswith("[", position)
        while position < len(text):
            if listed and text[position] in "[,]":
                position = _after_space(text, position + 1)
                continue
            end, spans = _object(text, position)
            records.append(Record(text[position:end], {n: (a - position, b - position) for n, (a, b) in spans.items()}))
            position = _after_space(text, end)
    except (ValueError, IndexError) as error:
        raise ManifestError(f"cannot be parsed ({error})", where=str(path), fix="check the file") from error
    return records


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return position if found is None else found.end()


def _object(text: str, start: int) -> tuple[int, dict[str, tuple[int, int]]]:
    """The end of the object that begins at ``start``, and the spans of its values."""
    spans: dict[str, tuple[int, int]] = {}
    position = _after_space(text, start + 1)
    while text[position] != "}":
        if text[position] == ",":
            position = _after_space(text, position + 1)
        name, position = _DECODER.raw_decode(text, position)
        position = _after_space(text, _after_space(text, position) + 1)  # past the colon
        _, end = _DECODER.raw_decode(text, position)
        spans[name] = (position, end)
        position = _after_space(text, end)
    return position + 1, spans


def _edited(lines: MatchedLines, records: list[Record], names: list[str]) -> Iterator[str]:
    """The objects that are left, in order, as text."""
    rows, label = lines.rows, lines.label
    written = spellings(rows.label_was, [r.raw(label) for r in records], str(lines.source))
    image, weighted = lines.image if lines.moved else None, rows.reweighted.any() and lines.weight is None
    weight = weight_column(lines.weight, names)
    for k in np.flatnonzero(rows.keep).tolist():
        record, values = records[k], {}
        if rows.relabelled[k]:
            new = int(rows.label[k])
            values[label] = written.get(new) or json.dumps(lines.job.edited.class_name(new), ensure_ascii=False)
        if rows.reweighted[k] or weighted:
            values[weight] = repr(float(rows.weight[k]))
        path = None if image is None else _DECODER.decode(record.raw(image))
        if image is not None and isinstance(path, str) and lines.rebased(path) != path:
            values[image] = json.dumps(lines.rebased(path), ensure_ascii=False)
        text = record.replaced(values)
        yield text if "\n" not in text else json.dumps(_DECODER.decode(text), ensure_ascii=False)
