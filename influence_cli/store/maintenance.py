"""Looking after a store: list, verify, collect.  No answer changes, only what has to be computed again."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influence_cli.events import SILENT, Listener
from influence_cli.store import VALUE_NOTE, Store, read_note
from influence_cli.store.files import DamagedFile, read_metadata, read_tensors
from influence_cli.store.gradients import GradientFolder
from influence_cli.store.keys import Keys
from influence_cli.store.shards import ShardFolder, positions

SINGLE = ("directions", "factors", "interims", "decisions", "trainings")  # one file a thing
SHARDED = ("outputs", "tangents", "row_values", "top_rows", "attacks", "gradients")
SPARE_SECONDS = 24 * 3600.0  # a younger temporary file may belong to a run in progress
OURS = re.compile(r"\..+\.\d+\.[0-9a-f]+\.tmp")  # a temporary file of ours: .NAME.PROCESS.RANDOM.tmp
MERGE_ROWS = 16_384  # shards are merged up to this many rows


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
    """Everything in the store, by kind and name."""
    entries: list[Entry] = []
    for kind in SHARDED:
        for folder in _folders(root / kind):
            shards = _shards(folder)
            rows = 0
            for shard in shards:
                try:
                    rows += int(read_metadata(shard)["rows"])
                except (DamagedFile, KeyError):
                    continue
            size = sum(s.stat().st_size for s in shards)
            entries.append(Entry(kind, folder.name, len(shards), rows, size, _about(folder)))
    for file in _shards(root / "directions"):
        try:
            meta = read_metadata(file)
            about = f"{meta.get('objective')}, Phi {meta.get('phi'):.4g}, {meta.get('m')} target rows"
            about += f", preconditioned by {meta['method']}" if "method" in meta else ""
        except (DamagedFile, TypeError, ValueError):
            about = "damaged"
        entries.append(Entry("directions", file.stem, 1, None, file.stat().st_size, about))
    entries += [_factor_entry(file) for file in _shards(root / "factors")]
    entries += [_decision_entry(file) for file in _shards(root / "decisions")]
    for file in _shards(root / "interims"):
        entries.append(Entry("interims", file.stem, 1, None, file.stat().st_size, "a computation that was stopped"))
    return [*entries, *_training_entries(_shards(root / "trainings"))]


def _factor_entry(file: Path) -> Entry:
    rows = None
    try:
        meta = read_metadata(file)
        fitted = ", ".join(str(v) for k, v in meta["fitted"].items() if k != "revision")
        rows, about = int(meta["rows"]), f"{fitted}, {meta['parameters']} parameters"
    except (DamagedFile, TypeError, ValueError, KeyError, AttributeError):
        about = "damaged"
    return Entry("factors", file.stem, 1, rows, file.stat().st_size, about)


def _decision_entry(file: Path) -> Entry:
    rows = None
    try:
        meta = read_metadata(file)
        rows, about = int(meta["rows"]), f"{meta['method']}, {meta['members']} members"
    except (DamagedFile, TypeError, ValueError, KeyError):
        about = "damaged"
    return Entry("decisions", file.stem, 1, rows, file.stat().st_size, about)


def _training_entries(files: list[Path]) -> list[Entry]:
    """One entry for all that was measured after training one architecture: there may be hundreds."""
    groups: dict[str, list[Path]] = {}
    for file in files:
        try:
            model = str(read_metadata(file).get("model"))
        except DamagedFile:
            model = "damaged"
        groups.setdefault(model, []).append(file)
    return [
        Entry("trainings", model, len(some), None, sum(f.stat().st_size for f in some), "measured after retraining")
        for model, some in sorted(groups.items())
    ]


def _about(folder: Path) -> str:
    """What ``spec.json`` says, for people."""
    try:
        spec: dict[str, Any] = json.loads((folder / "spec.json").read_text())
    except (OSError, ValueError):
        return ""
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


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _shards(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith(".")) if folder.is_dir() else []


def verify(root: Path, listener: Listener = SILENT) -> tuple[int, list[str]]:
    """Re-read every file; damaged ones are set aside.  Returns (files read, names of the damaged)."""
    files = [f for kind in SHARDED for folder in _folders(root / kind) for f in _shards(folder)]
    files += [f for kind in SINGLE for f in _shards(root / kind)]
    damaged: list[str] = []
    with listener.progress("verify", len(files), "files") as progress:
        for file in files:
            try:
                read_tensors(file)
            except DamagedFile as error:
                file.rename(file.with_name(f".damaged-{file.name}"))
                damaged.append(f"{file} ({error})")
            progress.advance(1)
    return len(files), damaged


def collect(root: Path, keep: Keys | None, listener: Listener = SILENT, fits: set[str] | None = None) -> dict[str, int]:
    """Remove rubbish, drop rows whose payload is not in ``keep`` [n, 16] (None: all are), and merge small shards.

    Rubbish is what was set aside as damaged, and temporary files and states of stopped computations older than a day.
    With ``fits``, factors of fit sets that are not among these fingerprints go too, with the directions made from them,
    the tangents along those, and values of rows that were taken with them.
    Payload files that are gone or have changed are forgotten, and undecodable payloads that are not in ``keep``.
    """
    before = _size(root)
    removed = 0 if fits is None else _collect_fits(root, fits)
    for file in _shards(root / "interims"):
        if time.time() - file.stat().st_mtime > SPARE_SECONDS:
            file.unlink(missing_ok=True)
            removed += 1
    ours = [root / kind for kind in (*SHARDED, *SINGLE)]
    for file in [f for folder in ours for pattern in (".*.tmp", ".damaged-*") for f in folder.rglob(pattern)]:
        if file.suffix == ".tmp" and not OURS.fullmatch(file.name):
            continue
        if file.name.startswith(".damaged-") or time.time() - file.stat().st_mtime > SPARE_SECONDS:
            file.unlink(missing_ok=True)
            removed += 1
    known = Store(root)
    notes_dropped = known.forget_undecodable(None if keep is None else {key.tobytes().hex() for key in keep})
    files = known.file_keys()
    files_forgotten = files.drop_stale()
    files.save()
    dropped = merged = 0
    for kind in SHARDED:
        for path in _folders(root / kind):
            if kind == "gradients":
                d, m = GradientFolder(path, {}, listener).collect(keep)
            else:
                d, m = _collect_folder(path, keep, listener)
            dropped, merged = dropped + d, merged + m
    return {
        "files_removed": removed,
        "rows_dropped": dropped,
        "shards_merged": merged,
        "payload_files_forgotten": files_forgotten,
        "undecodable_forgotten": notes_dropped,
        "bytes_freed": before - _size(root),
    }


def _size(root: Path) -> int:
    folders = [root / kind for kind in (*SHARDED, *SINGLE)]
    return sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file())


def _collect_fits(root: Path, fits: set[str]) -> int:
    """Remove what was fitted on other fit sets; returns the number of files."""
    removed = 0
    for kind in SINGLE:
        for file in _shards(root / kind):
            try:
                fit = read_metadata(file).get("fit")
            except DamagedFile:
                continue  # verify names it
            if fit is None or fit in fits:
                continue
            folder = root / "tangents" / file.stem  # along a direction of that name; none is named as a factor
            for gone in [*_shards(folder), folder / "spec.json", file]:
                if gone.exists():
                    gone.unlink()
                    removed += 1
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    for folder in _folders(root / "row_values"):
        note = folder / VALUE_NOTE
        if read_note(note, {}).get("fit") not in (None, *fits):
            for gone in [*_shards(folder), folder / "spec.json", note]:
                gone.unlink(missing_ok=True)
                removed += 1
            if not any(folder.iterdir()):
                folder.rmdir()
    return removed


def _collect_folder(path: Path, keep: Keys | None, listener: Listener) -> tuple[int, int]:
    """(rows dropped, shards merged) of one folder; new shards are written before old ones go."""
    folder = ShardFolder(path, {}, listener)
    old = _shards(path)
    keys, values = folder.load_all()
    first = positions(keys, keys) == np.arange(len(keys))
    payloads = values.get("payload_keys", keys)  # what is named by row says whose payload it is
    wanted = first if keep is None else first & (positions(payloads, keep) >= 0)
    dropped = int((first & ~wanted).sum())
    full = (len(keys) + MERGE_ROWS - 1) // MERGE_ROWS
    if wanted.all() and len(old) <= max(full, 1):
        return 0, 0
    chosen = np.flatnonzero(wanted)
    written: set[Path] = set()
    for start in range(0, len(chosen), MERGE_ROWS):
        rows = chosen[start : start + MERGE_ROWS]
        written.add(folder.write(keys[rows], {name: array[rows] for name, array in values.items()}))
    gone = [shard for shard in old if shard not in written]
    for shard in gone:
        shard.unlink(missing_ok=True)
    return dropped, len(gone)
