"""``influence cache``: the store looked after, and what it holds."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import cell, print_json, print_table
from influence_cli.cli.settings.requests import ResultOptions, StoreOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.errors import UsageError, nearest

if TYPE_CHECKING:
    from influence_cli.data.manifest import Manifest
    from influence_cli.store.maintenance import Entry


ACTIONS = ("ls", "verify", "gc", "key")


def cache(settings: Settings) -> None:
    """Look after the store: ls, verify (re-read everything), gc (drop rubbish, merge shards), key MANIFEST's rows."""
    from influence_cli.store.maintenance import collect, examine, list_entries
    from influence_cli.store.mirror import mirror_of, mirrored
    from influence_cli.store.remote import is_remote

    result, asked = settings.make(ResultOptions), settings.make(StoreOptions)
    result.check_format("cache")
    action = settings.source or "ls"
    at_an_address = is_remote(asked.store) and action in ("ls", "verify", "gc")
    root = mirrored(asked.store) if at_an_address else Path(asked.store)
    mirror = mirror_of(root)
    if mirror is not None:
        mirror.whole()
    if action == "ls":
        _show_entries(result, asked.store, list_entries(root))
    elif action == "verify":
        _show_facts(result, dataclasses.asdict(examine(root, terminal())))
    elif action == "gc":
        keys, fits = _named_by(_kept(asked))
        found = collect(root, keys, terminal(), fits)
        if mirror is not None:
            mirror.drop_gone()
        _show_facts(result, found)
    elif action == "key":
        if not asked.keep:
            raise UsageError("whose keys?", fix="influence cache key --keep MANIFEST")
        _show_keys(_kept(asked))
    else:
        fix = f"{nearest(action, list(ACTIONS))}; there are ls, verify, gc or key"
        raise UsageError(f"unknown action {action!r}", fix=fix)


def _kept(asked: StoreOptions) -> list[Manifest]:
    """The manifests to keep."""
    from influence_cli.data.open import open_manifest

    return [open_manifest(path, skip_bad=asked.skip_bad) for path in asked.keep]


def _named_by(manifests: list[Manifest]) -> tuple[Any, set[str] | None]:
    """Payload keys of manifests, and the fingerprints of their train rows as fit sets; None of none."""
    if not manifests:
        return None, None
    import numpy as np

    from influence_cli.stages.run.fit_set import FitSet

    fits = {FitSet.of(m.rows("train"), None).fingerprint for m in manifests}
    return np.concatenate([m.payload_keys for m in manifests]), fits


def _show_entries(result: ResultOptions, store: str, found: list[Entry]) -> None:
    """What the store holds."""
    if result.wants_json:
        print_json({"schema_version": 1, "entries": [dataclasses.asdict(e) for e in found]})
        return
    rows = [[e.kind, e.name, cell(e.files), cell(e.rows), f"{e.bytes:,}", e.about] for e in found]
    title = f"{store}: {sum(e.bytes for e in found):,} bytes"
    print_table(title, ["kind", "name", "files", "rows", "bytes", "what"], rows, sys.stdout)


def _show_facts(result: ResultOptions, facts: dict[str, Any]) -> None:
    """A few named facts: JSON in a pipe or when asked, lines for people."""
    if result.wants_json:
        print_json({"schema_version": 1, **facts})
        return
    for name, value in facts.items():
        shown = (", ".join(value) or "none") if isinstance(value, list) else f"{value:,}"
        sys.stdout.write(f"{name.replace('_', ' ')}: {shown}\n")


def _show_keys(manifests: list[Manifest]) -> None:
    """The keys under which rows are stored."""
    for rows in (manifest.all_rows() for manifest in manifests):
        for name, payload, row in zip(rows.ids, rows.payload_keys, rows.row_keys, strict=True):
            sys.stdout.write(f"{payload.tobytes().hex()} {row.tobytes().hex()} {name}\n")
