"""What a score run takes over from the table that a ``grads`` run wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def carried_settings(source: str) -> dict[str, Any] | None:
    """Settings from a stage table's provenance; None for a manifest with payload, or a table without provenance."""
    from influence_cli.data.kinds import kind_in
    from influence_cli.data.tables import PROVENANCE_KEY, parquet_files, provenance, read_schema
    from influence_cli.errors import ManifestError

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
    spec = origin.get("spec", {})
    return {
        "manifest": origin["manifest"].get("locator"),
        "label": origin["manifest"].get("label"),
        "group": origin["manifest"].get("group"),
        "target": origin["target"].get("locator"),
        "checkpoint": (origin.get("checkpoint") or {}).get("locator"),
        "fit_rows": (origin.get("fit_rows") or {}).get("locator"),
        **origin.get("model_flags", {}),
        "skip_bad": origin.get("skip_bad"),
        "method": spec.get("methods"),
        "objective": spec.get("objectives"),
        "options": spec.get("options", {}),
        **{k: spec.get(k) for k in ("params", "loss", "precision", "seed", "relative", "rows", "sketch_dim")},
        "origin": origin,
    }
