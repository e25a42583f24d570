"""``influence manifest``: data as people have it in, a checked manifest out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_json, print_table
from influence_cli.cli.settings.places import require_source
from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.answers import show_next
from influence_cli.data.request import Columns, IngestRequest
from influence_cli.errors import UsageError

if TYPE_CHECKING:
    from influence_cli.data.ingest import Ingested
    from influence_cli.data.manifest import Manifest


SHOWN = 40  # columns and files that are left out, line by line


def manifest(settings: Settings) -> None:
    """Image folder, CSV, Excel, JSONL, .npz, saved Hugging Face dataset or Parquet -> a checked manifest."""
    from influence_cli.data.ingest import make_manifest

    result = settings.make(ResultOptions)
    result.check_format("manifest")
    if result.output is None:
        raise UsageError("no output", fix="pass -o manifest.parquet")
    request = settings.make(
        IngestRequest,
        source=require_source(settings, "an image folder, .csv, .xlsx, .jsonl, .npz, .parquet or saved dataset"),
        columns=settings.make(Columns, label=settings.insisted("label"), group=settings.chosen("group")),
    )
    ingested = make_manifest(request, terminal())
    _show(result, ingested)
    _show_next(settings, result.output, ingested.manifest, ["--allow-outside"] if ingested.elsewhere else [])


def _show_next(settings: Settings, output: str, manifest: Manifest, read: list[str]) -> None:
    """Training on the manifest, by a model that takes its rows."""
    kind = manifest.payload_kind
    model = "linear" if kind.scaled else "hf:FOLDER" if kind.ragged else "resnet18"
    model = model if manifest.labelled else "gpt"
    if output == "-" or not len(manifest.rows("train")):
        return
    group = settings.repeated_of("group")
    test = [] if len(manifest.rows("test")) else ["--test", "TEST.parquet"]
    words = ["retrain", output, "--model", model, *group, *read, *test, "-o", "RUN"]
    show_next(*words, fill_in=tuple(word for word in ("hf:FOLDER", "TEST.parquet") if word in words))


def _show(result: ResultOptions, ingested: Ingested) -> None:
    """Rows of each class and split, notes, and what was skipped."""
    from influence_cli.data.ingest import label_table

    what, rows = label_table(ingested.manifest)
    if result.format == "json":
        skipped = [{"id": i, "reason": reason} for i, reason in ingested.skipped]
        left_out = [{"what": entry.what, "reason": entry.reason} for entry in ingested.left_out]
        found = {"taken": ingested.taken, "left_out": left_out, "notes": ingested.notes, "skipped": skipped}
        named = {"class": "classes", "label": "labels", "split": "splits"}[what]
        print_json({"schema_version": 1, "task": ingested.manifest.task, named: rows, **found})
    out = terminal()
    if out.quiet:
        return
    header = [what, "name", "train", "val", "test"]
    cells = [[str(r["class"]), r["name"], *(f"{r[s]:,}" for s in header[2:])] for r in rows if what != "split"]
    if what == "split":
        spread = ("mean", "sd", "least", "most")
        header = ["split", "rows", *(name for name in spread if rows and name in rows[0])]
        cells = [[r["split"], f"{r['rows']:,}", *(f"{r[k]:.4g}" for k in header[2:])] for r in rows]
    title = f"{len(ingested.manifest):,} rows from {ingested.kind}, written to {result.output}"
    print_table(title, header, cells, sys.stderr)
    for sentence in ingested.taken:
        out.note(sentence)
    said = 0
    for note in ingested.notes:
        said += note.startswith("left out: ")
        if said <= SHOWN or not note.startswith("left out: "):
            out.note(note)
    if said > SHOWN:
        out.note(f"left out: {said - SHOWN:,} more, which --json and the manifest's metadata list")
    for row, reason in ingested.skipped:
        out.warn(f"skipped row id={row}: {reason}")
