"""What a store holds, for people: by kind and name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influence_cli.errors import StoreError
from influence_cli.store.files import DamagedFile, read_metadata
from influence_cli.store.layout import SHARDED, SPEC, bytes_of, files_of, folders_of, shards_of
from influence_cli.store.place import check_place
from influence_cli.store.regular import open_regular

UNREADABLE = (DamagedFile, FileNotFoundError, TypeError, ValueError, KeyError, AttributeError)


@dataclass(frozen=True)
class Entry:
    """One thing in the store."""

    kind: str
    name: str
    files: int
    rows: int | None
    bytes: int
    about: str


def list_entries(root: Path) -> list[Entry]:
    """Everything in the store, by kind and name.

    Raises:
        StoreError: the folder is no store.
    """
    check_place(root)
    entries: list[Entry] = []
    for kind in SHARDED:
        for folder in folders_of(root / kind, links=True):
            shards = shards_of(folder)
            rows = 0
            for shard in shards:
                try:
                    rows += int(read_metadata(shard)["rows"])
                except (DamagedFile, KeyError, FileNotFoundError):
                    continue
            entries.append(Entry(kind, folder.name, len(shards), rows, sum(map(bytes_of, shards)), _about(folder)))
    for file in files_of(root / "directions"):
        try:
            meta = read_metadata(file)
            about = f"{meta.get('objective')}, Phi {meta.get('phi'):.4g}, {meta.get('m')} target rows"
            about += f", preconditioned by {meta['method']}" if "method" in meta else ""
        except UNREADABLE:
            about = "damaged"
        entries.append(Entry("directions", file.stem, 1, None, bytes_of(file), about))
    entries += [_factor_entry(file) for file in files_of(root / "factors")]
    entries += [_decision_entry(file) for file in files_of(root / "decisions")]
    for file in files_of(root / "interims"):
        entries.append(Entry("interims", file.stem, 1, None, bytes_of(file), "a computation that was stopped"))
    return [*entries, *_training_entries(files_of(root / "trainings"))]


def _factor_entry(file: Path) -> Entry:
    rows = None
    try:
        meta = read_metadata(file)
        fitted = ", ".join(str(v) for k, v in meta["fitted"].items() if k != "revision")
        rows, about = int(meta["rows"]), f"{fitted}, {meta['parameters']} parameters"
    except UNREADABLE:
        about = "damaged"
    return Entry("factors", file.stem, 1, rows, bytes_of(file), about)


def _decision_entry(file: Path) -> Entry:
    rows = None
    try:
        meta = read_metadata(file)
        rows, about = int(meta["rows"]), f"{meta['method']}, {meta['members']} members"
    except UNREADABLE:
        about = "damaged"
    return Entry("decisions", file.stem, 1, rows, bytes_of(file), about)


def _training_entries(files: list[Path]) -> list[Entry]:
    """One entry for all that was measured after training one architecture: there may be hundreds."""
    groups: dict[str, list[Path]] = {}
    for file in files:
        try:
            model = str(read_metadata(file).get("model"))
        except (DamagedFile, FileNotFoundError):
            model = "damaged"
        groups.setdefault(model, []).append(file)
    return [
        Entry("trainings", model, len(some), None, sum(map(bytes_of, some)), "measured after retraining")
        for model, some in sorted(groups.items())
    ]


def _about(folder: Path) -> str:
    """What ``spec.json`` says, for people: nothing where it is damaged."""
    try:
        with open_regular(folder / SPEC) as handle:
            return _said(json.load(handle))
    except (OSError, StoreError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _said(spec: dict[str, Any]) -> str:
    if "attack" in spec:
        how = ", ".join(f"{k} {v:g}" for k, v in spec["attack"].items() if isinstance(v, float))
        return f"{spec['model']['name']}, {spec['attack']['attack']} {how}"
    if "model" in spec:
        dropout = (spec.get("member") or {}).get("dropout")
        rate = "" if dropout is None else f", dropout {dropout['rate']:.4f}"
        what = f", {spec['value']['value']}, params {spec['params']}" if "value" in spec else ""
        what = f", rows {spec['rows']}, params {spec['params']}" if "rows" in spec else what
        return f"{spec['model']['name']}, {spec.get('precision')}{rate}{what}"
    return f"{', '.join(spec.get('objectives', []))}, params {spec.get('params')}"
