"""Where rows stand in what their manifest was made from: the line of a CSV or of JSON, the path of an image.

A source that has changed since has other lines, so then none is given, and a sentence says why.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from influence_cli.data.manifest import Manifest
from influence_cli.data.payloads import payload_batches
from influence_cli.data.request import Columns
from influence_cli.data.sources import open_source
from influence_cli.data.sources.comments import comment_lines
from influence_cli.data.sources.origin import Origin, read_origin
from influence_cli.data.sources.text_files import csv_form, text_encoding
from influence_cli.data.tables import read_schema
from influence_cli.errors import ManifestError

LINES = ("csv", "jsonl", "json")  # forms of sources whose rows stand in lines of text
_BETWEEN = re.compile(r"[\s,\[\ufeff]*")  # what stands before an object, in lines or in a list


@dataclass(frozen=True)
class Place:
    """The file that a row stands in, as seen from the working folder, and its line there.

    Both are None where they are unknown: nothing says what a manifest of one's own was made from.

    ``image`` is the path of its image, where it is a file.
    """

    file: str | None = None
    line: int | None = None
    image: str | None = None


def places_of(manifest: Manifest, rows: Sequence[int]) -> tuple[list[Place], str | None]:
    """The place of some rows of a manifest, by number; and why none has a line, where lines are to be expected.

    A row of a text file stands in that file; others in the file of their image, or in what the manifest was made from.
    """
    if not rows or not manifest.files or not os.path.exists(manifest.source):
        return [Place() for _ in rows], None
    origin = read_origin(read_schema(manifest.files[0]))
    images = _images(manifest, rows, origin)
    if origin is None:
        return [Place(images.get(row), image=images.get(row)) for row in rows], None
    source = origin.path(manifest.folder)
    if origin.form == "folder":
        return [Place(images.get(row) or str(source), image=images.get(row)) for row in rows], None
    lines, why = dict[str, int](), None
    if origin.form in LINES:
        try:
            lines = _lines_by_id(origin, origin.verified(manifest.folder), manifest.folder)
        except ManifestError as error:
            why = f"lines of {source} are not given: {error.what}"
    file = str(source) if source.exists() else None
    return [Place(file, lines.get(manifest.ids[row]), images.get(row)) for row in rows], why


def _lines_by_id(origin: Origin, source: Path, folder: Path) -> dict[str, int]:
    """The line that each row of a text file begins in, from 1, by id.  Raises ManifestError: it cannot be told."""
    opened = open_source(str(source), origin.columns_in(folder))
    ids = [i for table in (opened.narrow or opened.tables)() for i in table.column("id").to_pylist()]
    lines = csv_lines(source, origin.columns) if origin.form == "csv" else json_lines(source, origin.columns)
    if len(ids) != len(lines):
        raise ManifestError(f"{len(ids)} rows were read and {len(lines)} are there", where=str(source))
    return dict(zip(ids, lines, strict=True))


def csv_lines(path: Path, columns: Columns) -> list[int]:
    """The line that each row of a CSV begins in, from 1: one with quotes may go over several."""
    encoding, delimiter = csv_form(path, columns)
    first = comment_lines(path, encoding, delimiter)
    lines: list[int] = []
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding=encoding, newline="") as handle:
            reader = csv.reader(itertools.islice(handle, first, None), delimiter=delimiter)
            before = 0
            for row in reader:
                if row:
                    lines.append(first + before + 1)
                before = reader.line_num
    finally:
        csv.field_size_limit(limit)
    return lines[1:]  # the first are the names of the columns


def json_lines(path: Path, columns: Columns) -> list[int]:
    """The line that each object of a file of JSON begins in, from 1: objects one after the other, or one list."""
    text = path.read_bytes().decode(text_encoding(path, columns))
    decoder, lines, line, before, position = json.JSONDecoder(strict=False), list[int](), 1, 0, 0
    while True:
        found = _BETWEEN.match(text, position)
        position = position if found is None else found.end()
        if text[position : position + 1] != "{":
            return lines
        line, before = line + text.count("\n", before, position), position
        lines.append(line)
        _, position = decoder.raw_decode(text, position)


def _images(manifest: Manifest, rows: Sequence[int], origin: Origin | None) -> dict[int, str]:
    """The paths of the images of some rows, as seen from the working folder, where they are files."""
    if not manifest.payload_kind.pixels:
        return {}
    base = None if origin is None else origin.path(manifest.folder)
    beside = [manifest.folder, *([] if base is None else [base if base.is_dir() else base.parent])]
    wanted, found = np.unique(np.array(rows, dtype=np.int64)), dict[int, str]()
    for first, batch in payload_batches(manifest.files, manifest.payload_kind):
        here = wanted[(wanted >= first) & (wanted < first + len(batch))]
        if len(here):
            paths = manifest.payload_kind.paths(batch.take(pa.array(here - first)))
            found |= {
                row: place for row, path in zip(here.tolist(), paths, strict=True) if (place := _file(path, beside))
            }
    return found


def _file(path: str | None, folders: Sequence[Path]) -> str | None:
    """A path that is stored with an image as the file it is, in one of some folders; None where there is none."""
    if not path or "\0" in path:
        return None
    there = [os.path.join(folder, path) for folder in folders]
    return next((os.path.relpath(file) for file in there if os.path.isfile(file)), None)
