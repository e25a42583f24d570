"""Changed twins of the texts of some rows: from a column, or with words of a list swapped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from influence_cli.data.kinds.protocol import Payload, is_text
from influence_cli.data.manifest import Rows
from influence_cli.data.words import swapped, word_list
from influence_cli.errors import ManifestError, UsageError
from influence_cli.store.keys import fingerprint

WORDS = "words"  # in place of a column: the list of words


@dataclass(frozen=True, eq=False)
class Changed:
    """The twins of rows whose text changes, by the row's place in its manifest; of all other rows the text itself."""

    twins: dict[int, Payload]
    source: str  # the column, or the list of words
    digest: str  # of which row has which twin, in any order

    def __len__(self) -> int:
        return len(self.twins)


def changed_texts(rows: Rows, column: str | None) -> Changed:
    """The twins of the rows' texts: of ``column``, where a missing or empty one means no change, or with words swapped.

    Raises:
        UsageError: the rows have no texts, or pairs of texts and a column.
        ManifestError: there is no such column, or it holds no text.
    """
    manifest, kind = rows.manifest, rows.manifest.payload_kind
    if not kind.ragged:
        fix = "take the objective fairness, which compares groups of rows, in place of changed texts"
        what = f"changed texts are of texts, and the rows have {kind.column}"
        raise UsageError(what, where=manifest.source, fix=fix)
    found: dict[int, Payload] = {}
    if column is None:
        source = f"words for men and women, list {word_list()[1][:8]}"
        for row, payload in manifest.payloads(rows.index):
            twin = swapped(payload) if isinstance(payload, str) else tuple(map(swapped, payload))
            if twin != payload:
                found[row] = twin
    else:
        source = f"column {column}"
        texts = _column(rows, column)
        for row, payload in manifest.payloads(rows.index):
            if texts[row] and texts[row].strip() and texts[row] != payload:
                found[row] = texts[row]
    entries = sorted(
        [manifest.payload_keys[row].tobytes().hex(), twin if isinstance(twin, str) else list(twin)]
        for row, twin in found.items()
    )
    return Changed(found, source, fingerprint("changed-texts", 1, rows=entries))


def _column(rows: Rows, column: str) -> dict[int, Any]:
    manifest = rows.manifest
    if len(manifest.payload_kind.columns) > 1:
        what = "a column of changed texts holds one text a row, and the rows have pairs"
        raise UsageError(what, where=manifest.source, fix="leave flip-fairness.column out: words are swapped in both")
    if column not in manifest.table.column_names:
        others = [n for n in manifest.table.column_names if is_text(manifest.table.schema.field(n).type)]
        fix = f"columns of text there are: {', '.join(others)}; keep one: influence manifest --keep-column {column}"
        raise ManifestError(f"no column {column!r} with changed texts", where=manifest.source, fix=fix)
    values = manifest.table.column(column)
    if not is_text(values.type):
        where = f"{manifest.source}, column {column}"
        raise ManifestError(f"changed texts are {values.type}, not text", where=where, fix="name a column of text")
    every = values.to_pylist()
    return {row: every[row] for row in rows.index.tolist()}
