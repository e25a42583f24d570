"""What a score run takes over from the table that a ``grads`` run wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def carried_settings(source: str) -> dict[str, Any] | None:
    """Settings from a stage table's provenance; None for a manifest with payload, or a table without provenance."""
    from influence_cli.data.kinds import kind_in
    from influence_cli.data.tables import PROVENANCE_KEY, parquet_files, provenance, read_schema
    from influence_cli.errors import ManifestError
    from influence_cli.options import options_in, values_kept
    from influence_cli.settings import GradSpec, Inputs

    if Path(source).suffix in (".csv", ".jsonl"):
        return None
    schema = read_schema(parquet_files(source)[0])
    origin = provenance(schema)
    if kind_in(schema.names) is not None:
        return None
    if not origin:
        if PROVENANCE_KEY in (schema.metadata or {}):
            raise ManifestError("its provenance cannot be read", where=source, fix="run `influence grads` again")
        return None
    carried: dict[str, Any] = {"origin": origin}
    for kind in (Inputs, GradSpec):
        kept = values_kept(kind, origin)
        carried.update({o.name: kept[o.field] for o in options_in(kind) if o.field in kept})
    carried["options"] = carried.pop("set", {})
    return carried
