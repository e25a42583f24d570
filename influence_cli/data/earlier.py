"""What an existing file is an earlier output of: only such a file is ever replaced.

Parquet says it in its schema metadata, a page and a picture in theirs; CSV and JSONL have no place for a mark, so they
are known by exactly the columns that are written, with a row key in the first row.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from influence_cli.data.columns import SCORE, pattern_of
from influence_cli.data.formulas import MARK
from influence_cli.data.tables import provenance, read_schema
from influence_cli.errors import InfluenceError
from influence_cli.store.keys import parse_json

GRADS, SCORES, PER_TARGET, EDITS = "grads table", "score table", "per-target table", "table of edits"
CURATED, MADE, RESTORED = "curated manifest", "ingested manifest", "restored manifest"
MANIFESTS = (CURATED, MADE, RESTORED)
BASELINE, PAGE, PICTURE, RESULT = "baseline", "report", "picture", "result of evaluate"
TOKENS, BINS, REASONS = "table of tokens", "table of bins", "reasons of rows"

GENERATOR = "influence"  # what a page and a picture say made them
MADE_KEY = b"influence.made"  # of a manifest's first field: its schema metadata are the data's own
_SOURCE_KEY = b"influence.source"
_BY_STAGE = {"grads": GRADS, "score": SCORES, "per-target": PER_TARGET, "tokens": TOKENS, "bins": BINS}
_EDITS = ("id", "row_key", "action", "label_was", "label", "weight_was", "weight", "score", "reason")
_TOKENS = ("id", "row_key", "side", "rank", "row_score", "position", "token")  # and further ones
_BINS = ("id", "row_key", "label", "score", "low", "high", "bin", "reason", "review_value", "review")
_SCORE = pattern_of(SCORE)
_KEY = re.compile(r"[0-9a-f]{32}")
_BEFORE_MARKS = b"""<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src"""
_RESULTS = {"detection", "refit", "comparison"}


def kind_of(path: Path) -> str | None:
    """What kind of output of ours a regular file is, or None: somebody else's, or damaged."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(4096)
        if head.startswith(b"PAR1"):
            return _kind_of_parquet(path)
        if head.startswith(b"\x89PNG"):
            return PICTURE if b"tEXtSoftware\0" + GENERATOR.encode() in head else None
        if head.startswith(b"<!DOCTYPE html>"):
            mark = f'<meta name="generator" content="{GENERATOR}">'.encode()
            return PAGE if mark in head or _BEFORE_MARKS in head else None
        return _kind_of_json(path) if head[:1] == b"{" else _kind_of_csv(path)
    except (OSError, ValueError, csv.Error, pa.ArrowException, InfluenceError):  # nothing that can be read
        return None


def marked(schema: pa.Schema, kind: str) -> pa.Schema:
    """A manifest's schema with a note of what wrote it; its schema metadata stay."""
    first = schema.field(0)
    return schema.set(0, first.with_metadata({**(first.metadata or {}), MADE_KEY: kind.encode()}))


def _kind_of_parquet(path: Path) -> str | None:
    schema = read_schema(path)
    origin = provenance(schema)
    if origin.get("stage") == "curate":
        return EDITS if tuple(schema.names) == _EDITS else CURATED
    if origin:
        return _BY_STAGE.get(str(origin.get("stage")))
    made = ((schema.field(0).metadata or {}) if len(schema) else {}).get(MADE_KEY, b"").decode()
    if made in (MADE, RESTORED):
        return made
    return MADE if _SOURCE_KEY in (schema.metadata or {}) else None


def _kind_of_csv(path: Path) -> str | None:
    with open(path, newline="", encoding="utf-8") as handle:
        rows = csv.reader(handle)
        names, first = next(rows, []), next(rows, None)
    return _kind_of_table(names, None if first is None else dict(zip(names, first, strict=True)))


def _kind_of_json(path: Path) -> str | None:
    with open(path, encoding="utf-8") as handle:
        line = handle.readline()
        try:
            first = parse_json(line)
        except ValueError:
            first, result = None, parse_json(line + handle.read())
            ours = isinstance(result, dict) and "schema_version" in result and "arms" not in result
            return RESULT if ours and _RESULTS & set(result) else None
    return _kind_of_table(list(first), first) if isinstance(first, dict) else None


def _kind_of_table(names: Sequence[str], first: dict[str, Any] | None) -> str | None:
    """The kind of a table of these columns, whose first row, if any, has a row key."""
    names = tuple(n for n in names if n != MARK)
    if first is not None and not _KEY.fullmatch(str(first.get("row_key"))):
        return None
    if names in (("id", "row_key"), ("id", "row_key", "checksum"), ("id", "row_key", "line", "checksum")):
        return BASELINE
    if names == _EDITS:
        return EDITS
    if names == _BINS:
        return BINS
    if names[: len(_TOKENS)] == _TOKENS:
        return TOKENS
    if names[:3] == ("id", "row_key", "label") and names[-1] == "reasons":
        return REASONS
    if names[:2] == ("target_id", "target_row_key"):
        return PER_TARGET
    if names in (("id", "row_key", "payload_key", "label"), ("id", "row_key", "payload_key", "label", "loss")):
        return GRADS
    rest = names[3:]
    if names[:3] == ("id", "row_key", "label") and rest[:1] == ("score",) and all(map(_SCORE.fullmatch, rest)):
        return SCORES
    return None
