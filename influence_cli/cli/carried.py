"""What a score run takes over from the table that a ``grads`` run wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def carried_settings(source: str) -> dict[str, Any] | None:
    """Settings from a stage table's provenance; None for a manifest with payload, or a table without provenance."""
    import pyarrow.parquet as pq

    from influence_cli.manifest import PAYLOADS
    from influence_cli.tables import parquet_files, provenance

    if Path(source).suffix in (".csv", ".jsonl"):
        return None
    schema = pq.read_schema(parquet_files(source)[0])
    origin = provenance(schema)
    if not origin or any(name in schema.names for name in PAYLOADS):
        return None
    spec = origin.get("spec", {})
    return {
        "manifest": origin["manifest"]["locator"],
        "label": origin["manifest"]["label"],
        "target": origin["target"]["locator"],
        "checkpoint": (origin.get("checkpoint") or {}).get("locator"),
        **origin.get("model_flags", {}),
        "method": spec.get("methods"),
        "objective": spec.get("objectives"),
        "options": spec.get("options", {}),
        **{k: spec.get(k) for k in ("params", "loss", "precision", "seed")},
        "origin": origin,
    }
