"""``influence cache``: the store looked after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.settings.requests import ResultOptions, StoreOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.cache import show_entries, show_facts, show_keys
from influence_cli.errors import UsageError

if TYPE_CHECKING:
    from influence_cli.data.manifest import Manifest


def cache(settings: Settings) -> None:
    """Look after the store: ls, verify (re-read everything), gc (drop rubbish, merge shards), key MANIFEST's rows."""
    import dataclasses
    from pathlib import Path

    from influence_cli.store.maintenance import collect, examine, list_entries

    result, asked = settings.make(ResultOptions), settings.make(StoreOptions)
    result.check_format("auto", "table", "json")
    action, root = settings.source or "ls", Path(asked.store)
    if action == "ls":
        show_entries(result, asked.store, list_entries(root))
    elif action == "verify":
        show_facts(result, dataclasses.asdict(examine(root, terminal())))
    elif action == "gc":
        keys, fits = _named_by(_kept(asked))
        show_facts(result, collect(root, keys, terminal(), fits))
    elif action == "key":
        if not asked.keep:
            raise UsageError("whose keys?", fix="influence cache key --keep MANIFEST")
        show_keys(m.all_rows() for m in _kept(asked))
    else:
        raise UsageError(f"unknown action {action!r}", fix="ls, verify, gc or key")


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
