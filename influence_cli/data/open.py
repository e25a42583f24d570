"""A manifest from a file, a folder, or rows that a Python program holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from influence_cli.data.manifest import Manifest, read_manifest
from influence_cli.data.payload_files import FileKeys
from influence_cli.data.tables import parquet_files


def open_manifest(source: Any, label: str = "label", skip_bad: bool = False, known: FileKeys | None = None) -> Manifest:
    """Read a manifest from a file or folder of Parquet files, or from rows in memory; see ``read_manifest``."""
    if isinstance(source, Manifest):
        return source
    if not isinstance(source, str | Path):
        from influence_cli.data.in_memory import manifest_in_memory

        return manifest_in_memory(source, label, skip_bad)
    return read_manifest(str(source), parquet_files(str(source)), label, skip_bad=skip_bad, known=known)
