"""JSON lines: the source's own text, object by object, but for what was edited; or new objects from the manifest."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from influence_cli.data.sources.origin import Origin
from influence_cli.data.sources.protocol import IMAGE_NAMES, LABEL_NAMES, pick
from influence_cli.errors import ManifestError
from influence_cli.exports.matched import Matched, match_lines, spellings
from influence_cli.exports.protocol import ExportJob, Prepared, plain_rows, rebase

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
        inside = sorted(((self.spans[n], v) for n, v in values.items() if n in self.spans), reverse=True)
        for (start, end), value in inside:
            text = text[:start] + value + text[end:]
        for name, value in values.items():
            if name not in self.spans:
                body = text[: text.rindex("}")].rstrip()
                text = f"{body}{'' if body.endswith('{') else ', '}{json.dumps(name, ensure_ascii=False)}: {value}}}"
        return text


def prepare(job: ExportJob) -> Prepared:
    """Check a JSONL export: from the source where the manifest was made from one, otherwise from the manifest."""
    origin = job.made_from("jsonl")
    if origin is None:
        lines = [json.dumps(row, ensure_ascii=False, default=str) for row in plain_rows(job, "jsonl")]
        return _lines(lines, [])
    source = origin.verified(job.folder)
    records = read_objects(source)
    matched = match_lines(job, origin, source, len(records), "object")
    notes = list(matched.notes)
    return _lines(_edited(job, origin, source, records, matched, notes), notes)


def _lines(lines: list[str], notes: list[str]) -> Prepared:
    data = "".join(line + "\n" for line in lines).encode()
    return Prepared(lambda place: place.write_bytes(data), len(lines), notes)


def read_objects(path: Path) -> list[Record]:
    """The objects of a JSONL file, each as it is written.

    Raises:
        ManifestError: it is not JSON.
    """
    records: list[Record] = []
    try:
        text = path.read_bytes().decode()
        position = _after_space(text, 0)
        while position < len(text):
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


def _edited(
    job: ExportJob, origin: Origin, source: Path, records: list[Record], matched: Matched, notes: list[str]
) -> list[str]:
    """The objects that are left, in order, as text."""
    names = list(dict.fromkeys(n for record in records for n in record.spans))
    label = pick(names, origin.columns.label, LABEL_NAMES, "label", str(source))
    assert label is not None
    image = None if origin.columns.features else pick(names, origin.columns.image, IMAGE_NAMES, "image", str(source))
    written = spellings(matched.label_was, [r.raw(label) for r in records], str(source))
    moved = image is not None and source.parent.resolve() != job.place.parent.resolve()
    weighted = matched.reweighted.any()
    lines: list[str] = []
    for k in np.flatnonzero(matched.keep).tolist():
        record, values = records[k], {}
        if matched.relabelled[k]:
            new = int(matched.label[k])
            values[label] = written.get(new) or json.dumps(job.edited.class_name(new), ensure_ascii=False)
        if matched.reweighted[k] or (weighted and "weight" not in names):
            values["weight"] = repr(float(matched.weight[k]))
        if moved and image is not None:
            path = _DECODER.decode(record.raw(image))
            there = rebase(path, source.parent, job.place.parent) if isinstance(path, str) else path
            if there != path:
                values[image] = json.dumps(there, ensure_ascii=False)
        text = record.replaced(values)
        lines.append(text if "\n" not in text else json.dumps(_DECODER.decode(text), ensure_ascii=False))
    if moved:
        notes.append(f"relative paths in {image} count from {job.place.parent} now")
    return lines
