"""The commands around the pipeline: manifests in, methods listed, the store looked after."""

from __future__ import annotations

from typing import Any

from influence_cli.cli.settings.inputs import require_source
from influence_cli.cli.settings.resolve import Settings
from influence_cli.cli.show import manifest as show_data
from influence_cli.cli.show import tables as show
from influence_cli.errors import UsageError


def manifest(settings: Settings) -> int | None:
    """Image folder, CSV, JSONL, .npz, saved Hugging Face dataset or Parquet -> a checked manifest."""
    from influence_cli.data.ingest import IngestRequest, make_manifest
    from influence_cli.data.sources import Columns

    show.check_format(settings, ("auto", "table", "json"))
    if settings["output"] is None:
        raise UsageError("no output", fix="pass -o manifest.parquet")
    label = settings["label"] if settings.explicit("label") else None
    request = IngestRequest(
        require_source(settings, "an image folder, .csv, .jsonl, .npz, .parquet or saved dataset"),
        settings["output"],
        Columns(label, settings["id"], settings["image"], tuple(settings["features"])),
        settings["split"],
        settings["seed"],
        settings["embed"],
        settings["skip_bad"],
    )
    show_data.ingested(settings, make_manifest(request, show.terminal()))
    return None


def methods(settings: Settings) -> int | None:
    """Every scoring method: paper, what it needs, cost, kind, and with a NAME its options."""
    show_data.methods(settings)
    return None


def cache(settings: Settings) -> int | None:
    """Look after the store: ls, verify (re-read everything), gc (drop rubbish, merge shards), key MANIFEST's rows."""
    import dataclasses
    from pathlib import Path

    from influence_cli.store.maintenance import collect, examine, list_entries

    show.check_format(settings, ("auto", "table", "json"))
    action, root = settings.source or "ls", Path(settings["store"])
    if action == "ls":
        show_data.entries(settings, list_entries(root))
    elif action == "verify":
        show_data.report(settings, dataclasses.asdict(examine(root, show.terminal())))
    elif action == "gc":
        kept = _kept(settings["keep"], settings["skip_bad"])
        show_data.report(settings, collect(root, kept and kept[0], show.terminal(), kept and kept[1]))
    elif action == "key":
        if not settings["keep"]:
            raise UsageError("whose keys?", fix="influence cache key --keep MANIFEST")
        show_data.keys(settings, settings["keep"], settings["skip_bad"])
    else:
        raise UsageError(f"unknown action {action!r}", fix="ls, verify, gc or key")
    return None


def _kept(manifests: list[str], skip_bad: bool) -> tuple[Any, set[str]] | None:
    """Payload keys of the manifests to keep, and the fingerprints of their train rows as fit sets."""
    if not manifests:
        return None
    import numpy as np

    from influence_cli.data.open import open_manifest
    from influence_cli.stages.run.fit_set import FitSet

    opened = [open_manifest(path, skip_bad=skip_bad) for path in manifests]
    return np.concatenate([m.payload_keys for m in opened]), {
        FitSet.of(m.rows("train"), None).fingerprint for m in opened
    }
