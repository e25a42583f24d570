"""``influence manifest``: data as people have it in, a checked manifest out."""

from __future__ import annotations

from influence_cli.cli.console import terminal
from influence_cli.cli.settings.inputs import require_source
from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.manifest import show_ingested
from influence_cli.data.request import Columns, IngestRequest
from influence_cli.errors import UsageError


def manifest(settings: Settings) -> None:
    """Image folder, CSV, JSONL, .npz, saved Hugging Face dataset or Parquet -> a checked manifest."""
    from influence_cli.data.ingest import make_manifest

    result = settings.make(ResultOptions)
    result.check_format("auto", "table", "json")
    if result.output is None:
        raise UsageError("no output", fix="pass -o manifest.parquet")
    request = settings.make(
        IngestRequest,
        source=require_source(settings, "an image folder, .csv, .jsonl, .npz, .parquet or saved dataset"),
        columns=settings.make(Columns, label=settings.insisted("label")),
    )
    show_ingested(result, make_manifest(request, terminal()))
