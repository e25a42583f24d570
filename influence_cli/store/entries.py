"""What a store holds, for people: by kind and name."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influence_cli.errors import StoreError
from influence_cli.store.files import DamagedFile, open_regular
from influence_cli.store.layout import MANIFESTS, SHARDED, SPEC, bytes_of, files_of, folders_of, shards_of
from influence_cli.store.place import check_place
from influence_cli.store.tensors import read_metadata

Meta = dict[str, Any]


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
    """Everything in the store, by kind and name; StoreError where the folder is none."""
    check_place(root)
    entries = [_sharded(kind, folder) for kind in SHARDED for folder in folders_of(root / kind, links=True)]
    entries += [_single(kind, file) for kind in ABOUT for file in files_of(root / kind)]
    return [*entries, *_training_entries(files_of(root / "trainings"))]


def _sharded(kind: str, folder: Path) -> Entry:
    shards, rows = shards_of(folder), 0
    for shard in shards:
        with contextlib.suppress(DamagedFile, KeyError, FileNotFoundError):
            rows += int(read_metadata(shard)["rows"])
    return Entry(kind, folder.name, len(shards), rows, sum(map(bytes_of, shards)), _about(folder))


def _single(kind: str, file: Path) -> Entry:
    try:
        rows, about = ABOUT[kind](read_metadata(file) if kind != "interims" else {})
    except (DamagedFile, FileNotFoundError, TypeError, ValueError, KeyError, AttributeError):
        rows, about = None, "damaged"
    return Entry(kind, file.stem, 1, rows, bytes_of(file), about)


def _direction(meta: Meta) -> tuple[int | None, str]:
    how = f", preconditioned by {meta['method']}" if "method" in meta else ""
    return None, f"{meta.get('objective')}, Phi {meta.get('phi'):.4g}, {meta.get('m')} target rows{how}"


def _factor(meta: Meta) -> tuple[int | None, str]:
    fitted = ", ".join(str(v) for k, v in meta["fitted"].items() if k != "revision")
    return int(meta["rows"]), f"{fitted}, {meta['parameters']} parameters"


ABOUT: dict[str, Callable[[Meta], tuple[int | None, str]]] = {  # of one file a thing: rows, and what it is
    "directions": _direction,
    "factors": _factor,
    "decisions": lambda meta: (int(meta["rows"]), f"{meta['method']}, {meta['members']} members"),
    "weights": lambda meta: (None, f"member {meta['member']} trained further, {meta['steps']} steps"),
    "chains": lambda meta: (None, str(meta["about"])),
    "interims": lambda _: (None, "a computation that was stopped"),
    MANIFESTS: lambda meta: (int(meta["rows_read"]), f"keys of {', '.join(meta['files'])}"),
}


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
            spec = json.load(handle)
        if "attack" in spec:
            how = ", ".join(f"{k} {v:g}" for k, v in spec["attack"].items() if isinstance(v, float))
            return f"{spec['model']['name']}, {spec['attack']['attack']} {how}"
        if "model" not in spec:
            return f"{', '.join(spec.get('objectives', []))}, params {spec.get('params')}"
        dropout = (spec.get("member") or {}).get("dropout")
        rate = "" if dropout is None else f", dropout {dropout['rate']:.4f}"
        what = f", {spec['value']['value']}, params {spec['params']}" if "value" in spec else ""
        what = f", rows {spec['rows']}, params {spec['params']}" if "rows" in spec else what
        return f"{spec['model']['name']}, {spec.get('precision')}{rate}{what}"
    except (OSError, StoreError, ValueError, KeyError, TypeError, AttributeError):
        return ""
