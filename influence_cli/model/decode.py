"""One payload into what a model is fed with, as an array; imports no torch, so that a warm run may decode too."""

from __future__ import annotations

from influence_cli.data.kinds.protocol import Decoded, Payload
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.data.row_checks import BadRow
from influence_cli.errors import ManifestError
from influence_cli.model.spec import ModelSpec


def decode_row(manifest: Manifest, row: int, payload: Payload, spec: ModelSpec) -> Decoded:
    """One row's values, with an error that names file, row and column.

    Raises:
        ManifestError: it cannot be decoded.
    """
    kind = spec.payload_kind
    try:
        return kind.decode(payload, spec)
    except ValueError as error:
        raise ManifestError(
            str(error),
            where=f"{manifest.source}, row id={manifest.ids[row]}, column {manifest.payload_kind.column}",
            fix=f"{kind.repair}, or pass --skip-bad",
        ) from error


def undecodable(rows: Rows, spec: ModelSpec) -> list[BadRow]:
    """Every one of ``rows`` whose payload cannot be decoded."""
    found: list[BadRow] = []
    for row, payload in rows.manifest.payloads(rows.index):
        try:
            spec.payload_kind.decode(payload, spec)
        except ValueError as error:
            found.append(BadRow(row, rows.manifest.ids[row], rows.manifest.payload_kind.column, str(error)))
    return found
